"""Segmentation: which images train, which validate, and which evaluate.

With ``index.csv`` its column ``split`` decides, as :mod:`edgevis.data.image_split` says; all slices of a ``volume`` and
all images of a ``patient``, ``subject`` or ``person`` stay together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgevis.data.files import Files, open_files
from edgevis.data.image_split import columns_of, groups_of, split_images
from edgevis.data.leakage import SplitCheck, counted, listed
from edgevis.data.masks import read_mask
from edgevis.data.segmentation import (
    InstanceImages,
    MaskedImages,
    index_rows,
    instance_images,
    masked_images,
    outside,
)
from edgevis.data.splits import EVALUATED, NO_SPLIT, Role, roles_of_rows
from runtime.errors import InputError, SourceError

_INDEX = "index.csv"
_BOXES = "boxes_xyxy.json"


@dataclass(frozen=True, slots=True, eq=False)
class MaskSplit:
    """Positions of images.

    Attributes:
        data: All of them.
        train, validation, test: What each does; the last two may be empty.
        notes: What the report must say of the data, by name.
    """

    data: MaskedImages | InstanceImages
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    notes: dict[str, object] = field(default_factory=dict)


def split_masks(data: Path, *, held_out: float, from_boxes: bool, seed: int, check: SplitCheck) -> MaskSplit:
    """Read a data set's listing and divide it.

    Args:
        data: A folder or zip with ``images/`` and ``masks/``, or with ``instances/`` and ``boxes_xyxy.json``.
        held_out: The share of the training images that only validates, where the index has no split for it.
        from_boxes: Whether boxes train; otherwise masks do.
        seed: Draws what no split decides.
        check: Refuses what both sides share, or reports it.

    Raises:
        SourceError: The data cannot be read, or a row has an unknown split.
        InputError: Nothing is left to train on or shows an object, a box leaves its image, or the sides share what
            they must not.
    """
    files = open_files(data)
    rows, roles, repeated = rows_once(files)
    images: MaskedImages | InstanceImages
    images = instance_images(files, rows) if _BOXES in files.names else masked_images(files, rows)
    if isinstance(images, InstanceImages) and (beyond := outside(images, check.progress)):
        raise InputError(f"{data}: boxes reach beyond {counted(beyond, 'image')}: {listed(beyond, most=2)}")
    split = split_images(
        files,
        images.images,
        roles,
        groups=groups_of(rows),
        order=images.volumes,
        held_out=held_out,
        seed=seed,
        check=check,
        columns=columns_of(rows),
    )
    notes = {**({"repeated rows left out": repeated} if repeated else {}), **split.notes}
    train, test = split.train, split.test
    if not _shows(images, train, boxes=from_boxes):
        raise InputError(f"no {'box' if from_boxes else 'mask'} of the training images of {data} shows an object")
    if test and not _shows(images, test, boxes=False):
        raise InputError(f"no mask of the images of {data} that evaluate shows an object: there is nothing to measure")
    return MaskSplit(images, train, split.validation, test, notes)


def rows_once(files: Files) -> tuple[list[dict[str, str]], tuple[Role, ...] | None, int]:
    """The rows of ``index.csv``, each once, the split of each, and how many were repeated; see ``index_rows``.

    Raises:
        SourceError: The table cannot be read, a row has an unknown split, or ``train`` or both others have none.
    """
    rows = index_rows(files)
    roles = roles_of_rows(files, _INDEX, rows, EVALUATED)
    if roles is None:
        plain = {row["stem"]: row for row in rows}
        return list(plain.values()), None, len(rows) - len(plain)
    for lacking, needed in (("train", {"train"}), ("val or test", {"val", "test"})):
        if not needed & set(roles):
            raise SourceError(f"{files.where(_INDEX)} has no row of the split {lacking}; {NO_SPLIT}")
    once = {(row["stem"], role): row for row, role in zip(rows, roles, strict=True)}
    return list(once.values()), tuple(role for _, role in once), len(rows) - len(once)


def _shows(images: MaskedImages | InstanceImages, places: Sequence[int], *, boxes: bool) -> bool:
    """Whether one of the images shows an object; masks are read up to the first that does."""
    if boxes and isinstance(images, InstanceImages):
        return any(len(images.boxes[place]) for place in places)
    names = images.instances if isinstance(images, InstanceImages) else images.masks
    return any(bool(read_mask(images.files, names[place]).numbers.any()) for place in places)
