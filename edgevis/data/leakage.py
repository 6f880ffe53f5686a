"""Checks that training and evaluation share no files, copies of files, persons, volumes or classes.

Every training's data pass here once, before the first epoch. Copies are found by the bytes as they are stored: only
files of equal size (in a zip: of equal size and checksum) are read at all, and each of them once. A picture that was
saved anew has other bytes, and is not found.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from edgevis.data.files import Files
from runtime.errors import InputError

_SHOWN = 5

File = tuple[Files, str]
ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One side of a split.

    Attributes:
        name: Such as ``train``, for messages.
        files: Where the images lie.
        images: N paths in it.
        groups: What must lie on one side as a whole, such as ``volume``: N values each, compared without regard to
            case; an empty value belongs to no group.
        excluded: N values; a copy on another side with an equal value that is not None is never compared with the
            image by the evaluation, and so is no leakage.
    """

    name: str
    files: Files
    images: Sequence[str]
    groups: Mapping[str, Sequence[object]] = field(default_factory=dict)
    excluded: Sequence[Hashable] | None = None


class SplitCheck:
    """Compares the sides of a training's data and caches the digests of the files it has read.

    Args:
        allow_leakage: Return what is found instead of refusing it.
        split_by: How images without a stated split are divided, see :mod:`edgevis.data.image_split`; empty refuses
            them.
        progress: Told how many files are read, of how many.
    """

    def __init__(
        self, *, allow_leakage: bool = False, split_by: str = "", progress: ProgressCallback | None = None
    ) -> None:
        self.allow_leakage, self.split_by = allow_leakage, split_by
        self._progress = progress
        self._digests: dict[tuple[str, str, str], bytes] = {}

    def refuse(self, source: object, leaks: Sequence[str]) -> tuple[str, ...]:
        """The leaks, for the report.

        Raises:
            InputError: There are leaks, and leakage is not allowed.
        """
        if leaks and not self.allow_leakage:
            raise InputError(
                f"{source}: {'; '.join(leaks)}; correct the data, or give --allow-leakage, which trains nevertheless "
                "and writes this into the report"
            )
        return tuple(leaks)

    def progress(self, done: int, total: int) -> None:
        """Report how many files have been read."""
        if self._progress is not None:
            self._progress(done, total)

    def shared(
        self,
        sides: Sequence[Side],
        *,
        together: Collection[str] = (),
        blank: Callable[[File], bool] | None = None,
    ) -> list[str]:
        """Sentences on what two sides share, one for each kind: files, names without suffix, groups, copies.

        Args:
            sides: Two or more.
            together: Names of sides that must show the same groups, as query and gallery do.
            blank: Whether copies of this file tell nothing, as of slices beside the object.

        Raises:
            SourceError: A file cannot be read.
        """
        leaks: list[str] = []
        for first, second in itertools.combinations(sides, 2):
            where = f"{first.name} and {second.name}"
            both = _shared_files(first, second)
            if both:
                leaks.append(f"{counted(both, 'image')} in both {where} ({listed(both)})")
            if not {first.name, second.name} <= set(together):
                leaks += _shared_groups(first, second)
            stems = _same_stems(first, second)
            if stems:
                leaks.append(f"{counted(stems, 'image')} in both {where} under two suffixes ({listed(stems)})")
        return leaks + self._shared_copies(sides, blank)

    def copies(self, images: Sequence[File], sides: Sequence[int] | None = None) -> list[tuple[int, ...]]:
        """Positions of images with the same bytes, two or more each; one file at two positions is a copy, too.

        Args:
            images: Files of any number of listings.
            sides: The side of each; None also finds copies on one side.

        Raises:
            SourceError: A file cannot be read.
        """
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for position, (files, name) in enumerate(images):
            alike[files.signature(name)].append(position)
        suspects = [group for group in alike.values() if _spans(group, sides) and _differ(images, group)]
        self._read([images[position] for group in suspects for position in group])
        groups: list[tuple[int, ...]] = []
        for group in alike.values():
            if not _spans(group, sides):
                continue
            same: dict[object, list[int]] = defaultdict(list)
            for position in group:
                key = _key(images[position])
                same[self._digests.get(key, key)].append(position)
            groups += [tuple(members) for members in same.values() if _spans(members, sides)]
        return groups

    def linked(
        self,
        images: Sequence[File],
        groups: Iterable[Sequence[object]] = (),
        *,
        blank: Callable[[File], bool] | None = None,
    ) -> list[int]:
        """A number for each image, equal for images that belong together: copies, and members of one group.

        Args:
            images: N files.
            groups: N values each, as of :attr:`Side.groups`.
            blank: As of :meth:`shared`.

        Returns:
            N positions of the first image that each belongs to.
        """
        root = list(range(len(images)))

        def first_of(position: int) -> int:
            while root[position] != position:
                root[position] = root[root[position]]
                position = root[position]
            return position

        def join(positions: Iterable[int]) -> None:
            roots = sorted({first_of(position) for position in positions})
            for other in roots[1:]:
                root[other] = roots[0]

        for values in groups:
            members: dict[str, list[int]] = defaultdict(list)
            for position, value in enumerate(values):
                if plain := _plain(value):
                    members[plain].append(position)
            for positions in members.values():
                join(positions)
        for same in self.copies(images):
            if blank is None or not blank(images[same[0]]):
                join(same)
        return [first_of(position) for position in range(len(images))]

    def _shared_copies(self, sides: Sequence[Side], blank: Callable[[File], bool] | None) -> list[str]:
        images = [(side.files, name) for side in sides for name in side.images]
        number = [index for index, side in enumerate(sides) for _ in side.images]
        excluded = [value for side in sides for value in side.excluded or (None,) * len(side.images)]
        pairs: dict[tuple[int, int], list[str]] = defaultdict(list)
        for same in self.copies(images, number):
            if blank is not None and blank(images[same[0]]):
                continue
            of_side: dict[int, list[int]] = defaultdict(list)
            for position in same:
                of_side[number[position]].append(position)
            for a, b in itertools.combinations(of_side, 2):
                copy = next(
                    (
                        (first, second)
                        for first, second in itertools.product(of_side[a], of_side[b])
                        if _key(images[first]) != _key(images[second])  # one file has its own sentence
                        and (excluded[first] is None or excluded[first] != excluded[second])
                    ),
                    None,
                )
                if copy is not None:
                    pairs[a, b].append(f"{images[copy[0]][1]} = {images[copy[1]][1]}")
        return [
            f"{counted(copies, 'image')} with the same bytes in {sides[a].name} and {sides[b].name} ({listed(copies)})"
            for (a, b), copies in pairs.items()
        ]

    def _read(self, images: Sequence[File]) -> None:
        unread = {_key(image): image for image in images if _key(image) not in self._digests}
        for done, (key, (files, name)) in enumerate(unread.items()):
            self.progress(done, len(unread))
            self._digests[key] = hashlib.sha256(files.read(name)).digest()
        if unread:
            self.progress(len(unread), len(unread))


def same_spelling(kind: str, values: Iterable[str]) -> list[str]:
    """A sentence on names that differ only in case or blanks, and so may mean the same; none if there are none."""
    spelled: dict[str, set[str]] = defaultdict(set)
    for value in values:
        spelled[_plain(value)].add(value)
    twice = [" = ".join(repr(name) for name in sorted(names)) for names in spelled.values() if len(names) > 1]
    return [f"{counted(twice, kind)} spelled in two ways ({listed(twice)})"] if twice else []


def _shared_files(first: Side, second: Side) -> list[str]:
    if _key((first.files, "")) != _key((second.files, "")):
        return []
    other = set(second.images)
    if first.excluded is None or second.excluded is None:
        return sorted({name for name in first.images if name in other})
    values: dict[str, set[Hashable]] = defaultdict(set)
    for name, value in zip(second.images, second.excluded, strict=True):
        values[name].add(value)
    return sorted(
        {
            name
            for name, value in zip(first.images, first.excluded, strict=True)
            if name in other and (value is None or values[name] != {value})
        }
    )


def _same_stems(first: Side, second: Side) -> list[str]:
    """Images of both sides whose paths differ only in their suffix: one picture, saved in two formats."""
    if _key((first.files, "")) != _key((second.files, "")):
        return []
    stems: dict[str, set[str]] = defaultdict(set)
    for name in second.images:
        stems[_stem(name)].add(name)
    return sorted({name for name in first.images if stems.get(_stem(name), {name}) - {name}})


def _shared_groups(first: Side, second: Side) -> list[str]:
    sentences = []
    for kind in first.groups.keys() & second.groups.keys():
        other = {_plain(value) for value in second.groups[kind]}
        shared = {_plain(value): str(value) for value in first.groups[kind] if _plain(value) in other}
        shared.pop("", None)
        if shared:
            names = sorted(shared.values())
            sentences.append(f"{counted(names, kind)} in both {first.name} and {second.name} ({listed(names)})")
    return sorted(sentences)


def _differ(images: Sequence[File], positions: Sequence[int]) -> bool:
    return len({_key(images[position]) for position in positions}) > 1


def _spans(positions: Sequence[int], sides: Sequence[int] | None) -> bool:
    return len(positions) > 1 and (sides is None or len({sides[position] for position in positions}) > 1)


def _key(image: File) -> tuple[str, str, str]:
    files, name = image
    return str(files.path), files.inside, name


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _plain(value: object) -> str:
    return "" if value is None else " ".join(str(value).split()).casefold()


def counted(items: Sequence[object], what: str) -> str:
    """The number of items, in words."""
    if len(items) == 1:
        return f"1 {what}"
    plural = {"class": "classes"}.get(what, f"{what}s")
    return f"{len(items)} {plural}"


def listed(names: Sequence[str], *, most: int = _SHOWN) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
