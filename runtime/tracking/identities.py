"""Objects that are not enrolled, under names that stay: ``unknown-7`` comes back as ``unknown-7``.

The embeddings of unknowns are biometric data. They stay in the memory of the process, a dozen for each camera that saw
one, and are forgotten by two rules: whoever was not seen for ``forget_after_s``, and, where there are more than
``limit``, those who were not seen for longest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.errors import UnknownLabelError
from runtime.gallery.embedded import EmbeddedGallery
from runtime.open_set.decision import OpenSet
from runtime.open_set.enrolled import label_scores
from runtime.results import Match
from runtime.tracking.evidence import Evidence

PREFIX = "unknown-"
_NAME = re.compile(rf"{PREFIX}[0-9]+")
MAX_ROWS = 12
"""Embeddings that are kept of one unknown by one camera."""
_REPEATED = 0.95  # a view so much like one that is kept adds nothing
_TOP_K = 8
_RATE = 0.01  # of the new ones that may be taken for one who was seen before (FPIR)
SAME_CAMERA = 0.15
"""What views by one camera must exceed the threshold by: they share background, light and viewpoint, so that others
score higher, too. Measured with the Re-ID weights that ship on 54 persons of PKU-Reid, the mean of four views: by one
camera others reach 0.44 in 10 of 100 pairs and 0.58 in one, the same person 0.67 in 98; by two cameras others reach
0.31 and 0.43, the same person 0.39 in 90 and 0.49 in half of all."""


class RowSpace(Protocol):
    """The gallery of a task with embeddings; the pipeline's own holds the unknowns."""

    @property
    def gallery(self) -> EmbeddedGallery: ...

    @property
    def open_set(self) -> OpenSet: ...

    def rank(self, rows: Array, *, top_k: int) -> list[tuple[Match, ...]]:
        """The best labels of each of (N, D) float32 rows of the gallery's space."""
        ...


@dataclass(slots=True)
class _Unknown:
    seen_s: float
    rows: dict[int, list[npt.NDArray[np.float32]]] = field(default_factory=dict)  # by camera


class Unknowns:
    """The unknown identities of one pipeline, shared by its cameras.

    Args:
        space: Where their rows are searched; it holds nothing else.
        limit: The most that are remembered.
        forget_after_s: Seconds after which one that was not seen is forgotten.
    """

    def __init__(self, space: RowSpace, *, limit: int, forget_after_s: float) -> None:
        self._space, self._limit, self._forget_after_s = space, limit, forget_after_s
        space.open_set.set_rate(_RATE)
        self._known: dict[str, _Unknown] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def new(self, now: float, *, taken: Collection[str] = ()) -> str:
        """A name that was never given, and is none of the enrolled labels ``taken``."""
        while (name := f"{PREFIX}{self._next}") in taken:
            self._next += 1
        self._next += 1
        self._known[name] = _Unknown(now)
        return name

    def threshold(self, *, same_camera: bool) -> float:
        """The mean score, -1..1, from which an object is taken for an unknown that this or another camera has seen."""
        threshold = self._space.open_set.threshold
        return min(1.0, (1.0 if threshold is None else threshold) + (SAME_CAMERA if same_camera else 0.0))

    def has_views(self, name: str) -> bool:
        """Whether more is known of an unknown than that it is there."""
        return bool(self._known[name].rows)

    def find(self, evidence: Evidence, camera: int, *, excluded: Collection[str]) -> str | None:
        """The unknown that a track's views show; None for one that was not seen yet.

        Args:
            evidence: The track's views.
            camera: The camera's number.
            excluded: Unknowns that it cannot be: they are elsewhere in the same frame.
        """
        if not self._space.gallery.label_count:
            return None
        ranking = evidence.mean_ranking(self._space.rank(evidence.rows, top_k=_TOP_K + len(excluded)))
        surplus = [
            (match.score - self.threshold(same_camera=seen_by == camera), name)
            for match in ranking
            for name, seen_by in (_split(match.label),)
            if name not in excluded
        ]
        best = max(surplus, default=None)
        return best[1] if best is not None and best[0] >= 0.0 else None

    def surplus(self, name: str, camera: int, row: Array) -> float:
        """How far the score of a (D,) row against an unknown's views exceeds the threshold."""
        offset = float(self._space.open_set.offsets(row[None])[0])
        best = -np.inf
        for seen_by, rows in self._known[name].rows.items():
            scores = label_scores(row[None], np.stack(rows), np.array([len(rows)]), self._space.gallery.scoring)
            best = max(best, float(scores[0, 0]) - offset - self.threshold(same_camera=seen_by == camera))
        return best

    def learn(self, name: str, camera: int, rows: Array, now: float) -> None:
        """Note that an unknown was seen, and keep those of (N, D) rows of it that show something new."""
        unknown = self._known[name]
        unknown.seen_s = max(unknown.seen_s, now)
        known = unknown.rows.get(camera, [])
        kept = with_new_views(known, rows)
        if kept is not known:
            self._replace(name, camera, kept)

    def seen(self, name: str, now: float) -> None:
        """Note that an unknown is being seen."""
        self._known[name].seen_s = max(self._known[name].seen_s, now)

    def rows(self, name: str) -> npt.NDArray[np.float32]:
        """(N, D) float32: what is kept of an unknown; UnknownLabelError when it is not known."""
        self.check(name)
        rows = [row for own in self._known[name].rows.values() for row in own]
        return np.stack(rows) if rows else np.empty((0, self._space.gallery.dimension), np.float32)

    def merge(self, kept: str, other: str) -> None:
        """Make two unknowns one; UnknownLabelError when one of them is not known."""
        self.check(kept)
        self.check(other)
        if kept == other:
            return
        moved = self._known[other]
        self.forget(other)
        for camera, rows in moved.rows.items():
            self._replace(kept, camera, _spread([*self._known[kept].rows.get(camera, []), *rows]))
        self.seen(kept, moved.seen_s)

    def forget(self, name: str) -> None:
        """Forget an unknown; UnknownLabelError when it is not known."""
        self.check(name)
        for camera in self._known.pop(name).rows:
            self._space.gallery.remove(_joined(name, camera))

    def clear(self) -> None:
        """Forget all."""
        for name in list(self._known):
            self.forget(name)

    def check(self, name: str) -> None:
        """UnknownLabelError when an unknown is not known."""
        if name not in self._known:
            shown = ", ".join(list(self._known)[-5:]) or "none"
            raise UnknownLabelError(f"there is no {name!r} among the unknowns; the last ones: {shown}")

    def expire(self, now: float, *, present: Collection[str]) -> tuple[str, ...]:
        """Forget by the two rules of this module, but nobody of ``present``; returns who was forgotten."""
        absent = sorted((item.seen_s, name) for name, item in self._known.items() if name not in present)
        old = [name for seen_s, name in absent if now - seen_s > self._forget_after_s]
        surplus = max(0, len(self._known) - len(old) - self._limit)
        gone = [name for _, name in absent][: len(old) + surplus]  # those of `old` come first
        for name in gone:
            self.forget(name)
        return tuple(gone)

    def _replace(self, name: str, camera: int, rows: list[npt.NDArray[np.float32]]) -> None:
        label, known = _joined(name, camera), self._known[name].rows
        if camera in known:
            self._space.gallery.remove(label)
        known[camera] = rows
        self._space.gallery.add(label, np.stack(rows))


def with_new_views(known: list[npt.NDArray[np.float32]], rows: Array) -> list[npt.NDArray[np.float32]]:
    """The (D,) rows that are kept of an object, and those of (N, D) new ones that show something new.

    At most :data:`MAX_ROWS`, which are as unlike as can be; ``known`` itself where nothing is new.
    """
    fresh = list(known)
    for row in rows:
        if not fresh or max(float(row @ other) for other in fresh) < _REPEATED:
            fresh.append(np.asarray(row, np.float32))
    return _spread(fresh) if len(fresh) > len(known) else known


def is_unknown_name(text: str) -> bool:
    """Whether a text is a name as unknowns have it."""
    return _NAME.fullmatch(text) is not None


def _joined(name: str, camera: int) -> str:
    """The gallery's label for an unknown's views by one camera."""
    return f"{name}@{camera}"


def _split(label: str) -> tuple[str, int]:
    name, _, camera = label.partition("@")
    return name, int(camera)


def _spread(rows: list[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    """At most :data:`MAX_ROWS` rows: of the two that are most alike the older one goes, until they fit."""
    while len(rows) > MAX_ROWS:
        stacked = np.stack(rows)
        cosines = stacked @ stacked.T
        np.fill_diagonal(cosines, -np.inf)
        del rows[int(cosines.argmax()) // len(rows)]  # the first of the pair: the matrix is symmetric
    return rows
