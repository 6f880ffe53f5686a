"""Segmentation: which images train, which validate, and which evaluate.

With ``index.csv`` its column ``split`` decides: ``train`` trains; ``test`` evaluates, and ``val`` then chooses the
checkpoint; without ``test``, ``val`` evaluates, and a part of the training images chooses. Without that column a fifth
of the images evaluates. What is drawn is drawn as a whole: all slices of a ``volume``, all images of a ``patient``,
``subject`` or ``person``, and copies of one file stay together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgevis.data.files import Files, open_files
from edgevis.data.leakage import File, Side, SplitCheck, counted, listed
from edgevis.data.masks import read_mask
from edgevis.data.rng import draw_at, sample
from edgevis.data.segmentation import (
    InstanceImages,
    MaskedImages,
    index_rows,
    instance_images,
    masked_images,
    outside,
)
from edgevis.data.splits import EVALUATED, Role, roles_of_rows
from runtime.errors import InputError, SourceError

TEST_DRAW, HELD_DRAW = 0, 1
"""What the seed draws here; other uses of the same seed take other numbers."""

GROUPS = ("volume", "patient", "subject", "person")
"""Columns of ``index.csv`` whose equal values must not lie on two sides."""

_TEST = 0.2
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
    notes: dict[str, object] = {"repeated rows left out": repeated} if repeated else {}
    groups = groups_of(rows)
    together = check.linked([(files, name) for name in images.images], groups.values(), blank=is_blank)
    validation: tuple[int, ...] = ()
    if roles is None:
        order = sorted(set(together))
        drawn = set(sample(draw_at(seed, TEST_DRAW), order, round(_TEST * len(order))))
        train = tuple(place for place in range(len(rows)) if together[place] not in drawn)
        test = tuple(place for place in range(len(rows)) if together[place] in drawn)
    else:
        train, val, test = (tuple(i for i, role in enumerate(roles) if role == name) for name in EVALUATED)
        validation, test = (val, test) if test else ((), val)
        sides = [
            Side(name, files, [images.images[i] for i in places], _of(groups, places))
            for name, places in (("train", train), ("val", validation or test), ("test", test if validation else ()))
        ]
        leaks = check.shared(sides, blank=is_blank)
        if leaks:
            notes["leakage"] = list(check.refuse(data, leaks))
    if not validation:
        order = _in_order(images.volumes, together, train)
        held = set(sample(draw_at(seed, HELD_DRAW), order, round(held_out * len(order))))
        validation = tuple(place for place in train if together[place] in held)
        train = tuple(place for place in train if together[place] not in held)
    if not train:
        raise InputError(f"{data} has no image to train on; allowed: 1 or more")
    if not _shows(images, train, boxes=from_boxes):
        raise InputError(f"no {'box' if from_boxes else 'mask'} of the training images of {data} shows an object")
    if test and not _shows(images, test, boxes=False):
        raise InputError(f"no mask of the images of {data} that evaluate shows an object: there is nothing to measure")
    return MaskSplit(images, train, validation, test, notes)


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
            raise SourceError(f"{files.where(_INDEX)} has no row of the split {lacking}")
    once = {(row["stem"], role): row for row, role in zip(rows, roles, strict=True)}
    return list(once.values()), tuple(role for _, role in once), len(rows) - len(once)


def groups_of(rows: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The groups of images that must stay on one side, by the index columns that define them."""
    return {name: tuple(row[name] for row in rows) for name in GROUPS if rows and name in rows[0]}


def is_blank(image: File) -> bool:
    """Whether all pixels are equal, as of slices beside the patient: their copies tell a model nothing."""
    files, name = image
    pixels = files.image(name)
    return bool((pixels == pixels[:1, :1]).all())


def _of(groups: Mapping[str, Sequence[str]], places: Sequence[int]) -> dict[str, list[str]]:
    return {name: [values[place] for place in places] for name, values in groups.items()}


def _in_order(volumes: Sequence[str], together: Sequence[int], places: Sequence[int]) -> list[int]:
    """The groups to draw from, sorted by the name of their first volume."""
    first: dict[int, str] = {}
    for place in places:
        first[together[place]] = min(volumes[place], first.get(together[place], volumes[place]))
    return sorted(first, key=lambda group: first[group])


def _shows(images: MaskedImages | InstanceImages, places: Sequence[int], *, boxes: bool) -> bool:
    """Whether one of the images shows an object; masks are read up to the first that does."""
    if boxes and isinstance(images, InstanceImages):
        return any(len(images.boxes[place]) for place in places)
    names = images.instances if isinstance(images, InstanceImages) else images.masks
    return any(bool(read_mask(images.files, names[place]).numbers.any()) for place in places)
