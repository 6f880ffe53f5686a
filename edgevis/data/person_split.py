"""Person Re-ID: which persons train, which validate, and the queries and the gallery that evaluate.

The split ``train`` trains; ``query`` is evaluated against ``gallery``. The persons of a split ``val``, or else a part
of the training persons, only validate: their images of one camera against those of the others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgevis.data.files import open_files
from edgevis.data.leakage import Side, SplitCheck
from edgevis.data.reid import DISTRACTOR, PersonImages, read_market1501, read_person_table, unmatched
from edgevis.data.rng import draw_at, sample
from edgevis.data.splits import Role
from runtime.errors import InputError

HELD_DRAW = 0
"""The number of this use of the seed; each use of the same seed has another."""


@dataclass(frozen=True, slots=True, eq=False)
class PersonSplit:
    """Images of persons.

    Attributes:
        train: Of all persons that train or validate.
        held: Those of them that only validate; empty where none of them could be recognised by a second camera.
        query, gallery: Images that evaluate.
        notes: Facts about the data for the report, by name.
    """

    train: PersonImages
    held: frozenset[int]
    query: PersonImages
    gallery: PersonImages
    notes: dict[str, object] = field(default_factory=dict)


def split_persons(data: Path, *, held_out: float, seed: int, check: SplitCheck) -> PersonSplit:
    """Read a data set's listing and divide it.

    Args:
        data: A folder or zip in Market-1501's layout, or with ``labels.csv``.
        held_out: The share of the training persons that only validates, where the table has no split ``val``.
        seed: Draws them.
        check: Refuses what both sides share, or reports it.

    Raises:
        SourceError: The data cannot be read, or a row has an unknown split.
        InputError: Fewer than two persons train, no query can be matched, or the sides share what they must not.
    """
    parts, market = _parts(data)
    train, val, query, gallery = parts["train"], parts.get("val"), parts["query"], parts["gallery"]
    missing = unmatched(query, gallery)
    if missing == len(query):
        raise InputError(
            f"{data}: none of the {len(query)} queries has a gallery image of its person from another camera, so there "
            "is nothing to rank; query and gallery must show the same persons under different camera numbers"
        )
    notes: dict[str, object] = {}
    if missing:
        notes["queries without a match, not counted"] = missing
    if junk := sum(part.junk for part in parts.values()):
        notes["junk images dropped"] = junk
    images_of = Counter(train.ids)
    if single := sum(count == 1 for count in images_of.values()):
        notes["training persons with one image"] = single
    sides = [_side(name, part) for name, part in parts.items() if name in ("train", "val")]
    # A distractor is nobody: it may be in several parts. Only Market-1501's layout has them.
    sides += [_side(name, parts[name], market=market) for name in ("query", "gallery")]
    leaks = check.shared(sides, together=("query", "gallery"))
    if leaks:
        notes["leakage"] = list(check.refuse(data, leaks))
    persons = sorted(set(train.ids))
    if val is None:
        held = frozenset(sample(draw_at(seed, HELD_DRAW), persons, round(held_out * len(persons))))
    else:
        held = frozenset(val.ids)
        train = PersonImages(
            train.files, train.names + val.names, train.ids + val.ids, train.cameras + val.cameras, train.junk
        )
    if not _can_validate(train, held):
        if val is not None:
            raise InputError(f"{data}: no person of the split val is seen by two cameras; leave the split out")
        held = frozenset()
    left = len(set(train.ids) - held)
    if left < 2:
        raise InputError(f"{data} has {left} persons to train on; allowed: 2 or more")
    return PersonSplit(train, held, query, gallery, notes)


def _parts(data: Path) -> tuple[dict[Role, PersonImages], bool]:
    """The parts of a data set, and whether it has Market-1501's layout."""
    names = open_files(data).names
    if "labels.csv" in names:
        return read_person_table(data), False
    if not any(name.startswith("bounding_box_train/") for name in names):
        raise InputError(f"{data} has neither labels.csv nor bounding_box_train/; allowed: one of these layouts")
    return {part: read_market1501(data, part) for part in ("train", "query", "gallery")}, True


def _side(name: str, part: PersonImages, *, market: bool = False) -> Side:
    persons = [None if market and person == DISTRACTOR else person for person in part.ids]
    seen = tuple(zip(part.ids, part.cameras, strict=True))
    return Side(name, part.files, part.names, {"person": persons}, seen if name in ("query", "gallery") else None)


def _can_validate(train: PersonImages, held: frozenset[int]) -> bool:
    """Whether an image by the first camera shows a person of these whom another camera saw, too."""
    places = [place for place, person in enumerate(train.ids) if person in held]
    if not places:
        return False
    ids, cameras = (np.asarray(column)[places] for column in (train.ids, train.cameras))
    first = cameras == cameras.min()
    return bool(np.isin(ids[first], ids[~first]).any())
