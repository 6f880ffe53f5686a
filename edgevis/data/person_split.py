"""Person Re-ID: which persons train, which validate, and the queries and the gallery that evaluate.

The split ``train`` trains; ``query`` is evaluated against ``gallery``. The persons of a split ``val``, or else a part
of the training persons, only validate: their images of one camera against those of the others.

Of a folder for each person (:mod:`edgevis.data.person_folders`) persons are drawn that only evaluate, a fifth of them,
unless folders name splits: then the persons of ``test`` do, or of ``val`` where there is no ``test``. Each one's
pictures by one camera are queries, and those by others the gallery.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgevis.data.files import open_files
from edgevis.data.leakage import Side, SplitCheck, counted
from edgevis.data.person_folders import read_person_folders
from edgevis.data.reid import DISTRACTOR, PersonImages, read_market1501, read_person_table, unmatched
from edgevis.data.rng import draw_at, sample
from edgevis.data.splits import Role
from runtime.errors import InputError

HELD_DRAW, _TEST_DRAW = 0, 1 << 16
"""The number of this use of the seed; each use of the same seed has another."""

_TEST = 0.2
_LEAST = 2  # among the pictures of a single person every answer is right


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
    parts, market, notes = _parts(data, seed, check)
    train, val, query, gallery = parts["train"], parts.get("val"), parts["query"], parts["gallery"]
    missing = unmatched(query, gallery)
    if missing == len(query):
        raise InputError(
            f"{data}: none of the {len(query)} queries has a gallery image of its person from another camera, so there "
            "is nothing to rank; query and gallery must show the same persons under different camera numbers"
        )
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
        known = notes.get("leakage", ())
        notes["leakage"] = [*(known if isinstance(known, list) else ()), *check.refuse(data, leaks)]
    persons = sorted(set(train.ids))
    if val is None:
        count = max(_LEAST, round(held_out * len(persons))) if held_out and len(persons) >= 2 * _LEAST else 0
        held = frozenset(sample(draw_at(seed, HELD_DRAW), persons, count))
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


def _parts(data: Path, seed: int, check: SplitCheck) -> tuple[dict[Role, PersonImages], bool, dict[str, object]]:
    """The parts of a data set, whether it has Market-1501's layout, and notes for the report."""
    names = open_files(data).names
    if "labels.csv" in names:
        return read_person_table(data), False, {}
    if any(name.startswith("bounding_box_train/") for name in names):
        return {part: read_market1501(data, part) for part in ("train", "query", "gallery")}, True, {}
    folders = read_person_folders(data, check=check)
    roles = _drawn_roles(data, folders.images, seed) if folders.roles is None else folders.roles
    return _ranked_parts(data, folders.images, roles), False, folders.notes


def _drawn_roles(data: Path, images: PersonImages, seed: int) -> tuple[Role, ...]:
    """``test`` for the pictures of persons that only evaluate, ``train`` for the others."""
    cameras: dict[int, set[int]] = {}
    for person, camera in zip(images.ids, images.cameras, strict=True):
        cameras.setdefault(person, set()).add(camera)
    seen = sorted(person for person, own in cameras.items() if len(own) > 1)
    if len(seen) < 3 * _LEAST:
        raise InputError(
            f"{data} has {counted(list(cameras), 'person')}, {len(seen)} of them with pictures by two cameras (or two "
            f"pictures, where no camera is named); allowed: {3 * _LEAST} or more such persons, so that {_LEAST} train, "
            f"{_LEAST} validate and {_LEAST} evaluate; or another layout: labels.csv, or bounding_box_train/"
        )
    drawn = set(sample(draw_at(seed, _TEST_DRAW), seen, max(_LEAST, round(_TEST * len(seen)))))
    return tuple("test" if person in drawn else "train" for person in images.ids)


def _ranked_parts(data: Path, images: PersonImages, roles: Sequence[Role]) -> dict[Role, PersonImages]:
    """The parts by their split; pictures that evaluate are divided by camera into queries and gallery."""
    evaluates: Role = "test" if "test" in roles else "val"
    first: dict[int, int] = {}
    for person, camera in zip(images.ids, images.cameras, strict=True):
        first[person] = min(camera, first.get(person, camera))
    places: dict[Role, list[int]] = {}
    for place, role in enumerate(roles):
        is_query = images.cameras[place] == first[images.ids[place]]
        part: Role = role if role != evaluates else "query" if is_query else "gallery"
        places.setdefault(part, []).append(place)
    for part in ("train", "query", "gallery"):
        if part not in places:
            lacks = "no person that trains" if part == "train" else f"only pictures by one camera in {evaluates}"
            raise InputError(f"{data} has {lacks}; allowed: persons in train, and persons with pictures by two cameras")
    return {part: images.at(chosen) for part, chosen in places.items()}


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
