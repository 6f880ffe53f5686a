"""Divides images into those that train, validate and evaluate: by their stated splits, or by a draw from the seed.

With splits, ``train`` trains; ``test`` evaluates, and ``val`` then chooses the checkpoint; without ``test``, ``val``
evaluates, and a part of the training images chooses. Without splits a fifth of the images evaluates. What is drawn is
drawn as a whole: members of a group (all slices of a ``volume``, all images of a ``person``) and copies of one file
stay together.

Images drawn one by one may show what others show, such as frames of one video. So data without splits need groups: a
column of :data:`GROUPS`, or one that is named (``SplitCheck.split_by``), or ``folder``, the folder that an image lies
in; or ``image``, which says that every image shows something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgevis.data.files import Files
from edgevis.data.leakage import File, Side, SplitCheck
from edgevis.data.rng import draw_at, sample
from edgevis.data.splits import EVALUATED, Role
from runtime.errors import InputError

TEST_DRAW, HELD_DRAW = 0, 1
"""What the seed draws here; other uses of the same seed take other numbers."""

GROUPS = ("volume", "patient", "subject", "person")
"""Columns of a table whose equal values must not lie on two sides."""

_TEST = 0.2


@dataclass(frozen=True, slots=True)
class ImageSplit:
    """Positions of images.

    Attributes:
        train, validation, test: What each does; the last two may be empty.
        notes: What the report must say of the data, by name.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    notes: dict[str, object] = field(default_factory=dict)


def split_images(
    files: Files,
    names: Sequence[str],
    roles: Sequence[Role] | None,
    *,
    groups: Mapping[str, Sequence[str]],
    order: Sequence[str],
    held_out: float,
    seed: int,
    check: SplitCheck,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> ImageSplit:
    """Divide the images.

    Args:
        files: Where the images lie.
        names: N paths in it.
        roles: N splits; None where none is stated.
        groups: N values for each kind of group, see :func:`groups_of`.
        order: N names that say in which order groups are drawn from, whatever order the images have.
        held_out: The share of the training images that only validates, where no split does.
        seed: Draws what no split decides.
        check: Refuses what both sides share, or reports it.
        columns: N values of each column of the table, of which ``split_by`` may name one.

    Raises:
        InputError: There are neither splits nor groups, nothing is left to train on, or the sides share what they must
            not.
        SourceError: A file cannot be read.
    """
    notes: dict[str, object] = {}
    if check.split_by:
        groups = {**groups, **_named_groups(files, names, roles, columns or {}, check.split_by)}
        notes["split by"] = check.split_by
    elif roles is None and not groups:
        raise InputError(
            f"{files.path} does not say which images train and which validate, and images drawn one by one may show "
            "what others show, such as frames of one video; allowed: a column split with train and val in index.csv "
            "(COCO: instances_train.json and instances_val.json); a column there whose equal values stay together, "
            f"named {', '.join(GROUPS)}, or any with --split-by COLUMN; --split-by folder, by which images of one "
            "folder stay together; or --split-by image, where every image shows something else"
        )
    together = check.linked([(files, name) for name in names], groups.values(), blank=is_blank)
    validation: tuple[int, ...] = ()
    if roles is None:
        drawable = sorted(set(together))
        drawn = set(sample(draw_at(seed, TEST_DRAW), drawable, round(_TEST * len(drawable))))
        train = tuple(place for place in range(len(names)) if together[place] not in drawn)
        test = tuple(place for place in range(len(names)) if together[place] in drawn)
    else:
        train, val, test = (tuple(i for i, role in enumerate(roles) if role == name) for name in EVALUATED)
        validation, test = (val, test) if test else ((), val)
        sides = [
            Side(name, files, [names[i] for i in places], _of(groups, places))
            for name, places in (("train", train), ("val", validation or test), ("test", test if validation else ()))
        ]
        leaks = check.shared(sides, blank=is_blank)
        if leaks:
            notes["leakage"] = list(check.refuse(files.path, leaks))
    if not validation:
        groups_in_order = _in_order(order, together, train)
        count = max(1, round(held_out * len(groups_in_order))) if held_out and len(groups_in_order) > 1 else 0
        held = set(sample(draw_at(seed, HELD_DRAW), groups_in_order, count))
        validation = tuple(place for place in train if together[place] in held)
        train = tuple(place for place in train if together[place] not in held)
    if not train:
        raise InputError(f"{files.path} has no image to train on; allowed: 1 or more")
    return ImageSplit(train, validation, test, notes)


def _named_groups(
    files: Files,
    names: Sequence[str],
    roles: Sequence[Role] | None,
    columns: Mapping[str, Sequence[str]],
    split_by: str,
) -> dict[str, Sequence[str]]:
    """The groups that ``split_by`` names."""
    if roles is not None:
        raise InputError(f"split_by is {split_by!r}, but {files.path} states its splits: leave --split-by out")
    if split_by == "image":
        return {}
    if split_by == "folder":
        folders = [name.rpartition("/")[0] for name in names]
        if len(set(folders)) < 2:
            raise InputError(
                f"split_by is 'folder', but all {len(names)} images of {files.path} lie in one folder; allowed: two or "
                "more folders, a column of index.csv, or --split-by image where every image shows something else"
            )
        return {"folder": folders}
    if split_by not in columns:
        known = ", ".join(("folder", "image", *columns))
        raise InputError(f"split_by is {split_by!r}; allowed for {files.path}: {known}")
    return {split_by: columns[split_by]}


def groups_of(rows: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The groups of images that must stay on one side, by the table's columns that define them."""
    return {name: tuple(row[name] for row in rows) for name in GROUPS if rows and name in rows[0]}


def columns_of(rows: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The values of each column of a table."""
    return {name: tuple(row[name] for row in rows) for name in (rows[0] if rows else ())}


def is_blank(image: File) -> bool:
    """Whether all pixels are equal, as of slices beside the patient: their copies tell a model nothing."""
    files, name = image
    pixels = files.image(name)
    return bool((pixels == pixels[:1, :1]).all())


def _of(groups: Mapping[str, Sequence[str]], places: Sequence[int]) -> dict[str, list[str]]:
    return {name: [values[place] for place in places] for name, values in groups.items()}


def _in_order(order: Sequence[str], together: Sequence[int], places: Sequence[int]) -> list[int]:
    """The groups to draw from, sorted by the first name in each."""
    first: dict[int, str] = {}
    for place in places:
        first[together[place]] = min(order[place], first.get(together[place], order[place]))
    return sorted(first, key=lambda group: first[group])
