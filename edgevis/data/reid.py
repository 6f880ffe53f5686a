"""Person re-identification: images with an identity and a camera.

Layouts: Market-1501 (Zheng, Shen, Tian, Wang, Wang, Tian, ICCV 2015), whose file names say both, and PKU-Reid (Ma, Liu,
Hu, Wang, Sun, arXiv:1605.02464) with a table. Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from edgevis.data.checks import integer
from edgevis.data.files import Files, open_files
from edgevis.data.splits import RANKED, Role, roles_of_rows, rows_of_split
from runtime.errors import InputError, SourceError
from runtime.images.decode import Image
from runtime.images.folders import images_of

DISTRACTOR = 0
"""The identity of Market-1501's images of persons or things that no query asks for: they stay in the gallery."""

JUNK = -1
"""The identity of Market-1501's images that count neither for nor against a ranking. Readers drop it, and less."""

_TABLE, _COLUMNS = "labels.csv", ("path", "pid", "camid")
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
        junk: How many further images had the identity :data:`JUNK` or another negative one.
    """

    files: Files
    names: tuple[str, ...]
    ids: tuple[int, ...]
    cameras: tuple[int, ...]
    junk: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, int, int]:
        """One image, (H, W, 3) uint8 BGR, its identity and its camera; SourceError when it cannot be decoded."""
        return self.files.image(self.names[index]), self.ids[index], self.cameras[index]

    def at(self, places: Sequence[int]) -> PersonImages:
        """Some of the images, by position."""
        names, ids, cameras = self.names, self.ids, self.cameras
        return PersonImages(
            self.files,
            tuple(names[place] for place in places),
            tuple(ids[place] for place in places),
            tuple(cameras[place] for place in places),
        )


def read_market1501(
    path: str | os.PathLike[str], part: Literal["train", "query", "gallery"], *, inside: str = ""
) -> PersonImages:
    """One part of a data set in Market-1501's layout, in the order of the file names.

    Images of identity :data:`JUNK` are dropped, those of identity :data:`DISTRACTOR` are kept.

    Args:
        path: The folder or zip that holds ``bounding_box_train``, ``query`` and ``bounding_box_test``.
        part: The part to read.
        inside: The folder inside ``path`` that holds them.

    Raises:
        InputError: There is no such part.
        SourceError: There is no such folder or zip, no image is left, or an image has a name of another form.
    """
    if part not in _MARKET_FOLDERS:
        raise InputError(f"part is {part!r}; allowed: {', '.join(_MARKET_FOLDERS)}")
    files = open_files(path, inside=inside)
    persons: list[tuple[str, int, int]] = []
    for name in images_of(files.below(_MARKET_FOLDERS[part])):
        match = _MARKET_NAME.fullmatch(PurePosixPath(name).name)
        if match is None:
            raise SourceError(
                f"{files.where(name)} is not named like 0002_c1s1_000451_03.jpg: identity and camera first"
            )
        identity, camera = (integer(text, f"the number in {files.where(name)}") for text in match.groups())
        persons.append((name, identity, camera))
    return _persons(files, persons, f"images of persons in {files.inside}{_MARKET_FOLDERS[part]}")


def read_pku_reid(path: str | os.PathLike[str], split: str | None = None) -> PersonImages:
    """The images that ``labels.csv`` lists with the columns ``path``, ``pid`` and ``camid``, in its order.

    Images of identity :data:`JUNK`, or of another negative one, are dropped.

    Args:
        path: A folder or zip, with images such as ``images/001/01_1.png`` (identity, camera, orientation).
        split: Only rows with this value in the column ``split``, such as ``query``; None for all.

    Raises:
        SourceError: There is no such folder or zip, the table lacks a column, holds something else than a number or
            names an image that is not there, or no row fits.
    """
    files = open_files(path)
    return _listed(files, rows_of_split(files, _TABLE, _COLUMNS, split), "images of persons")


def read_person_table(path: str | os.PathLike[str]) -> dict[Role, PersonImages]:
    """All images of ``labels.csv`` by their split: ``train``, ``query`` and ``gallery``, and ``val`` where it has one.

    Args:
        path: As of :func:`read_pku_reid`; the names of the splits are those of :mod:`edgevis.data.splits`.

    Raises:
        SourceError: As :func:`read_pku_reid`, a row has an unknown split, or one of the three has no rows.
    """
    files = open_files(path)
    rows = files.table(_TABLE, (*_COLUMNS, "split"))
    roles = roles_of_rows(files, _TABLE, rows, RANKED)
    parts: dict[Role, PersonImages] = {}
    for role in RANKED:
        chosen = [row for row, row_role in zip(rows, roles or (), strict=True) if row_role == role]
        if chosen:
            parts[role] = _listed(files, chosen, f"images of persons in the split {role}")
        elif role != "val":
            raise SourceError(f"{files.where(_TABLE)} has no row of the split {role}")
    return parts


def unmatched(query: PersonImages, gallery: PersonImages) -> int:
    """The number of queries without a gallery image of their identity from another camera; rankings exclude them."""
    cameras: dict[int, set[int]] = {}
    for identity, camera in zip(gallery.ids, gallery.cameras, strict=True):
        cameras.setdefault(identity, set()).add(camera)
    return sum(
        not cameras.get(identity, set()) - {camera} for identity, camera in zip(query.ids, query.cameras, strict=True)
    )


def _listed(files: Files, rows: Sequence[Mapping[str, str]], what: str) -> PersonImages:
    persons = []
    for row in rows:
        numbers = [integer(row[key], f"{key} of {row['path']} in {files.where(_TABLE)}") for key in ("pid", "camid")]
        persons.append((files.listed(row["path"], _TABLE), numbers[0], numbers[1]))
    return _persons(files, persons, what)


def _persons(files: Files, rows: Sequence[tuple[str, int, int]], what: str) -> PersonImages:
    persons = [row for row in rows if row[1] >= DISTRACTOR]
    if not persons:
        raise SourceError(f"{files.path} holds no {what}")
    names, ids, cameras = zip(*persons, strict=True)
    return PersonImages(files, names, ids, cameras, len(rows) - len(persons))
