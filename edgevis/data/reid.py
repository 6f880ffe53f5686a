"""Person re-identification: images with an identity and a camera.

Layouts: Market-1501 (Zheng, Shen, Tian, Wang, Wang, Tian, ICCV 2015), whose file names say both, and PKU-Reid (Ma, Liu,
Hu, Wang, Sun, arXiv:1605.02464) with a table. Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from edgevis.data.checks import integer
from edgevis.data.classes import rows_of_split
from edgevis.data.files import Files, images_of, open_files
from runtime.errors import InputError, SourceError
from runtime.images import Image

DISTRACTOR = 0
"""The identity of Market-1501's images of persons or things that no query asks for: they stay in the gallery."""

JUNK = -1
"""The identity of Market-1501's images that count neither for nor against a ranking: readers drop them."""

# 0002_c1s1_000451_03.jpg: identity, camera, sequence, frame, box. Sets made in its style end differently.
_MARKET_NAME = re.compile(r"(-1|[0-9]+)_c([0-9]+)(?![0-9]).*")
_MARKET_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


@dataclass(frozen=True, slots=True, eq=False)
class PersonImages:
    """Paths, identities and cameras; an image is decoded when it is asked for. May serve as a PyTorch data set.

    Attributes:
        files: Where the images lie.
        names: N paths in it.
        ids: N identities as the data set numbers them.
        cameras: N cameras.
    """

    files: Files
    names: tuple[str, ...]
    ids: tuple[int, ...]
    cameras: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, int, int]:
        """One image, (H, W, 3) uint8 BGR, its identity and its camera; SourceError when it cannot be decoded."""
        return self.files.image(self.names[index]), self.ids[index], self.cameras[index]


def read_market1501(
    path: str | os.PathLike[str], part: Literal["train", "query", "gallery"], *, inside: str = ""
) -> PersonImages:
    """One part of a data set in Market-1501's layout, in the order of the file names.

    Images of identity :data:`JUNK` are dropped, those of identity :data:`DISTRACTOR` are kept.

    Args:
        path: The folder or zip that holds ``bounding_box_train``, ``query`` and ``bounding_box_test``.
        part: Which of them.
        inside: The folder in it that they lie in.

    Raises:
        InputError: There is no such part.
        SourceError: There is no such folder or zip, no image is left, or an image has a name of another form.
    """
    if part not in _MARKET_FOLDERS:
        raise InputError(f"part is {part!r}; allowed: {', '.join(_MARKET_FOLDERS)}")
    files = open_files(path, inside=inside)
    found = []
    for name in images_of(files.below(_MARKET_FOLDERS[part])):
        match = _MARKET_NAME.fullmatch(PurePosixPath(name).name)
        if match is None:
            raise SourceError(
                f"{files.where(name)} is not named like 0002_c1s1_000451_03.jpg: identity and camera first"
            )
        identity, camera = (integer(text, f"the number in {files.where(name)}") for text in match.groups())
        if identity != JUNK:
            found.append((name, identity, camera))
    if not found:
        raise SourceError(f"{files.path} holds no images of persons in {files.inside}{_MARKET_FOLDERS[part]}")
    names, ids, cameras = zip(*found, strict=True)
    return PersonImages(files, names, ids, cameras)


def read_pku_reid(path: str | os.PathLike[str], split: str | None = None) -> PersonImages:
    """The images that ``labels.csv`` lists with the columns ``path``, ``pid`` and ``camid``, in its order.

    Args:
        path: A folder or zip, with images such as ``images/001/01_1.png`` (identity, camera, orientation).
        split: Only rows with this value in the column ``split``, such as ``query``; None for all.

    Raises:
        SourceError: There is no such folder or zip, the table lacks a column, holds something else than a number or
            names an image that is not there, or no row fits.
    """
    files = open_files(path)
    rows = rows_of_split(files, "labels.csv", ("path", "pid", "camid"), split)
    for row in rows:
        files.require(row["path"], "which labels.csv lists")
    ids, cameras = (
        tuple(integer(row[key], f"{key} of {row['path']} in {files.where('labels.csv')}") for row in rows)
        for key in ("pid", "camid")
    )
    return PersonImages(files, tuple(row["path"] for row in rows), ids, cameras)
