"""Few-shot classification: which images train, which validate, and which evaluate on novel classes.

With a table, its column ``split`` decides row by row: ``train`` trains; ``test`` evaluates, and ``val`` then chooses
the checkpoint; without ``test``, ``val`` evaluates. A class with rows in two of them is not novel, and so is refused;
where that is allowed, each of its rows stays on its own side. Folders named like these splits, with a folder for each
class in them, do the same. Without either, novel classes are drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgevis.data.classes import LabelledImages, labelled, read_class_folders
from edgevis.data.files import open_files
from edgevis.data.leakage import Side, SplitCheck, same_spelling
from edgevis.data.mixed import mixed_split
from edgevis.data.rng import draw_at, sample
from edgevis.data.splits import EVALUATED, Role, require_other_side, role_of, roles_of_rows
from runtime.errors import InputError, SourceError

NOVEL_DRAW, HELD_DRAW = 0, 1
"""The number of this use of the seed; each use of the same seed has another."""

_NOVEL = 0.2
_LEAST_NOVEL = 2  # with a single class every prediction is right
_TABLE = "labels.csv"


@dataclass(frozen=True, slots=True, eq=False)
class ClassSplit:
    """Positions of images.

    Attributes:
        images: All of them.
        train: Trains.
        validation: Of classes that only validate; empty where there are none.
        novel: Of classes that only evaluate; empty where there are none.
        mixed: Of novel classes and of as many training classes, whose other images train; empty unless asked for.
        notes: What the report must say of the data, by name.
    """

    images: LabelledImages
    train: tuple[int, ...]
    validation: tuple[int, ...]
    novel: tuple[int, ...]
    mixed: tuple[int, ...]
    notes: dict[str, object] = field(default_factory=dict)


def split_classes(data: Path, *, held_out: float, mixed: bool, seed: int, check: SplitCheck) -> ClassSplit:
    """Read a data set's listing and divide it.

    Args:
        data: A folder or zip, as the module says.
        held_out: The share of the training classes that only validates, where the table has no split of its own: two
            or more of four or more; 0 holds none out.
        mixed: Whether half of the images of each training class evaluates beside the novel ones.
        seed: Draws what no split decides.
        check: Refuses what both sides share, or reports it.

    Raises:
        SourceError: The data cannot be read, or a row has an unknown split.
        InputError: Fewer than two classes train or evaluate, or the sides share what they must not.
    """
    images, roles, notes = _listing(data, check)
    leaks = same_spelling("class", images.classes)
    validation: Sequence[int] = ()
    declared = False
    if roles is None:
        classes = images.classes
        count = max(_LEAST_NOVEL, round(_NOVEL * len(classes))) if len(classes) >= 2 * _LEAST_NOVEL else 0
        drawn = set(sample(draw_at(seed, NOVEL_DRAW), classes, count))
        novel = _places(images, drawn, range(len(images)))
        train = _places(images, set(classes) - drawn, range(len(images)))
    else:
        train, val, novel = (tuple(i for i, role in enumerate(roles) if role == name) for name in EVALUATED)
        declared = bool(val and novel)
        validation, novel = (val, novel) if novel else ((), val)
    trained = sorted({images.labels[place] for place in train})
    if not declared:
        count = max(_LEAST_NOVEL, round(held_out * len(trained)))
        held = (
            set(sample(draw_at(seed, HELD_DRAW), trained, count))
            if held_out and len(trained) >= 2 * _LEAST_NOVEL
            else set()
        )
        validation = _places(images, held, train)
        train = tuple(place for place in train if images.labels[place] not in held)
    sides = [
        Side(name, images.files, [images.names[i] for i in places], {"class": [images.labels[i] for i in places]})
        for name, places in (("training", train), ("validation", validation), ("test", novel))
    ]
    leaks += check.shared(sides)
    if leaks:
        notes["leakage"] = list(check.refuse(data, leaks))
    for name, places, least in (("to train on", train, 2), ("that validate", validation, 0), ("novel", novel, 0)):
        number = len({images.labels[place] for place in places})
        if number < least or number == 1:
            raise InputError(f"{data} has {number} classes {name}; allowed: 2 or more")
    if not mixed:
        return ClassSplit(images, train, tuple(validation), novel, (), notes)
    base, new = (sorted({images.labels[place] for place in places}) for places in (train, novel))
    parts = mixed_split(images.labels, base=base, validation=(), test=new, seed=seed)
    return ClassSplit(images, parts.train, tuple(validation), novel, parts.test, notes)


def _listing(data: Path, check: SplitCheck) -> tuple[LabelledImages, tuple[Role, ...] | None, dict[str, object]]:
    """The images, the split of each image, and notes for the report; copies within one class are left out."""
    files = open_files(data)
    roles: tuple[Role, ...] | None = None
    if _TABLE in files.names:
        rows = files.table(_TABLE, ("path", "class_name"))
        roles = roles_of_rows(files, _TABLE, rows, EVALUATED)
        if roles is not None and "train" not in roles:
            raise SourceError(f"{files.where(_TABLE)} has no row of the split train")
        unnamed = [row["path"] for row in rows if not row["class_name"]]
        if unnamed:
            raise SourceError(f"{files.where(_TABLE)} gives {unnamed[0]} no class_name")
        images = labelled(files, [files.listed(row["path"], _TABLE) for row in rows], [r["class_name"] for r in rows])
    else:
        images = read_class_folders(data)
        require_other_side(data, images.names)
        folders = [label.partition("/")[::2] for label in images.labels]
        named = [role_of(folder) if label else None for folder, label in folders]
        if "train" in named and all(role in EVALUATED for role in named):
            roles = tuple(role for role in named if role is not None)
            images = labelled(files, images.names, [label for _, label in folders])
    sides = [(label, None if roles is None else roles[place]) for place, label in enumerate(images.labels)]
    left_out: set[int] = set()
    conflicts = 0
    for same in check.copies([(files, name) for name in images.names]):
        first: dict[object, int] = {}
        left_out |= {place for place in same if first.setdefault(sides[place], place) != place}
        conflicts += len({images.labels[place] for place in same}) > 1
    notes: dict[str, object] = {}
    if left_out:
        notes["repeated images left out"] = len(left_out)
    if conflicts:
        notes["images in two classes"] = conflicts
    places = [place for place in range(len(images)) if place not in left_out]
    return (
        labelled(files, [images.names[place] for place in places], [images.labels[place] for place in places]),
        None if roles is None else tuple(roles[place] for place in places),
        notes,
    )


def _places(images: LabelledImages, labels: set[str], among: Sequence[int]) -> tuple[int, ...]:
    return tuple(place for place in among if images.labels[place] in labels)
