"""Persons in a folder each: ``anna/1.jpg``, with cameras as ``anna/door/1.jpg`` or ``anna/cam2_1.jpg``.

Folders named like splits may lie around them, such as ``train/anna/1.jpg`` and ``test/bob/1.jpg``. Where nothing names
a camera, the first half of each person's pictures, by name, counts as one camera and the rest as another: of a person
who was filmed once, neighbouring frames are then not ranked against each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from edgevis.data.classes import shared_folders
from edgevis.data.files import Files, open_files
from edgevis.data.leakage import SplitCheck, counted, listed, same_spelling
from edgevis.data.reid import PersonImages
from edgevis.data.splits import EVALUATED, Role, require_other_side, role_of
from runtime.errors import InputError, SourceError
from runtime.images.folders import images_of

_CAMERA = re.compile(r"(?:^|[_-])(?:camera|cam|c)[_-]?([0-9]+)(?![0-9a-z])", re.IGNORECASE)
_ALLOWED = "allowed: a folder for each person, PERSON/1.jpg, in which folders may name cameras, PERSON/CAMERA/1.jpg"


@dataclass(frozen=True, slots=True, eq=False)
class PersonFolders:
    """The pictures of all persons.

    Attributes:
        images: Identities count the persons by name, from 1.
        persons: The names of the persons, in the order of their identities.
        roles: The split of each picture; None where no folders name splits.
        notes: What the report must say of the data, by name.
    """

    images: PersonImages
    persons: tuple[str, ...]
    roles: tuple[Role, ...] | None
    notes: dict[str, object] = field(default_factory=dict)


def read_person_folders(path: Path, *, check: SplitCheck) -> PersonFolders:
    """Read a listing of a folder or zip with a folder for each person.

    Args:
        path: The folder or zip.
        check: Finds copies, and refuses pictures that lie in two persons' folders, or reports them.

    Raises:
        SourceError: It cannot be read, holds no pictures, or a picture lies in no person's folder or too deep.
        InputError: Two persons' names differ in case alone, or one picture is of two persons.
    """
    files = open_files(path)
    names = images_of(files.names)
    if not names:
        raise SourceError(f"{path} holds no pictures; {_ALLOWED}")
    require_other_side(path, names)
    parents = [PurePosixPath(name).parts[:-1] for name in names]
    if stray := next((name for name, parent in zip(names, parents, strict=True) if not parent), None):
        raise SourceError(f"{files.where(stray)} lies in no person's folder; {_ALLOWED}")
    first = [role_of(parent[0]) for parent in parents]
    roles: tuple[Role, ...] | None = None
    if "train" in first and all(role in EVALUATED for role in first) and len(set(first)) > 1:
        roles = tuple(role for role in first if role is not None)
        inner = [parent[1:] for parent in parents]
    else:
        shared = min(shared_folders(parents), min(len(parent) for parent in parents) - 1)
        inner = [parent[shared:] for parent in parents]
    for name, parent in zip(names, inner, strict=True):
        if not 1 <= len(parent) <= 2:
            raise SourceError(f"{files.where(name)} lies in {len(parent)} folders; {_ALLOWED}")
    persons = tuple(sorted({parent[0] for parent in inner}))
    number = {name: place + 1 for place, name in enumerate(persons)}
    images = PersonImages(files, tuple(names), tuple(number[parent[0]] for parent in inner), (0,) * len(names))
    leaks = same_spelling("person", persons)
    left_out, conflicts = _copies(images, check)
    if conflicts:
        leaks.append(f"{counted(conflicts, 'picture')} in two persons' folders ({listed(conflicts)})")
    notes: dict[str, object] = {"leakage": list(check.refuse(path, leaks))} if leaks else {}
    if left_out:
        notes["repeated images left out"] = len(left_out)
    kept = [place for place in range(len(names)) if place not in left_out]
    cameras = _cameras(files, [names[place] for place in kept], [inner[place] for place in kept])
    if cameras is None:
        notes["cameras"] = "none named: each person's pictures, by name, are halved"
        cameras = _halves([images.ids[place] for place in kept])
    images = replace(images.at(kept), cameras=tuple(cameras))
    return PersonFolders(images, persons, None if roles is None else tuple(roles[place] for place in kept), notes)


def _copies(images: PersonImages, check: SplitCheck) -> tuple[set[int], list[str]]:
    """Positions of a person's repeated pictures, and pairs of copies that two persons have."""
    left_out: set[int] = set()
    conflicts: list[str] = []
    for same in check.copies([(images.files, name) for name in images.names]):
        first: dict[int, int] = {}
        left_out |= {place for place in same if first.setdefault(images.ids[place], place) != place}
        if len(first) > 1:
            conflicts.append(" = ".join(images.names[place] for place in first.values()))
    return left_out, conflicts


def _cameras(files: Files, names: Sequence[str], parents: Sequence[tuple[str, ...]]) -> list[int] | None:
    """The camera of each picture, numbered from 1 in the order of their names; None where no picture names one."""
    cameras: list[str | None] = []
    for name, parent in zip(names, parents, strict=True):
        match = _CAMERA.search(PurePosixPath(name).stem)
        cameras.append(parent[1] if len(parent) > 1 else None if match is None else f"{int(match[1]):09}")
    known = {camera for camera in cameras if camera is not None}
    if not known:
        return None
    if None in cameras:
        without = names[cameras.index(None)]
        named = next(name for name, camera in zip(names, cameras, strict=True) if camera is not None)
        raise InputError(
            f"{files.where(without)} names no camera, and {named} does; allowed: all of them do, as in "
            "PERSON/CAMERA/1.jpg or PERSON/cam2_1.jpg, or none does"
        )
    number = {name: place + 1 for place, name in enumerate(sorted(known))}
    return [number[camera] for camera in cameras if camera is not None]


def _halves(ids: Sequence[int]) -> list[int]:
    """1 for the first half of each identity's pictures, which are in order, and 2 for the rest."""
    total = {identity: ids.count(identity) for identity in set(ids)}
    seen = dict.fromkeys(total, 0)
    cameras = []
    for identity in ids:
        seen[identity] += 1
        cameras.append(1 if 2 * seen[identity] <= total[identity] + 1 else 2)
    return cameras
