"""The best scores of fixed rows, such as known strangers, against a changing gallery.

An addition costs a product with the rows that are new; a removal, a search for those rows alone whose best label it
was. Nothing is scored twice, whatever is enrolled.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime.common.arrays import Array, unit_rows
from runtime.errors import InputError
from runtime.gallery.queries import Queries
from runtime.gallery.search import best
from runtime.gallery.state import GalleryState, SlotEpoch

_SLICE = 1024  # rows of the gallery that are scored at once
_MANY = 64  # probes for which one product with all rows takes less time than a search for each


class SlottedGallery(Protocol):
    """The protocol of a tracked gallery: its labels keep their slots."""

    @property
    def dimension(self) -> int: ...

    @property
    def state(self) -> GalleryState: ...

    def alive(self, epoch: SlotEpoch, slots: Array) -> tuple[GalleryState, Array]: ...


@dataclass(frozen=True, slots=True)
class BestOfState:
    """The best scores in one state of the gallery.

    Attributes:
        version: The gallery's version.
        scores: (N,) float32: each probe's best score; -inf where there is no label.
        labels: The name of each probe's best label, None where there is none.
        label_count: The number of labels in that state.
    """

    version: int
    scores: Array
    labels: tuple[str | None, ...]
    label_count: int


class BestScores:
    """Tracks the scores of probes against the labels of a gallery. Threads may share it.

    Args:
        gallery: The gallery with the labels.
        probes: (N, D) float32 unit rows; copied.

    Raises:
        InputError: The probes are not (N, D).
    """

    def __init__(self, gallery: SlottedGallery, probes: Array) -> None:
        if probes.ndim != 2 or probes.shape[1] != gallery.dimension:
            raise InputError(f"probes of shape {probes.shape}; this gallery takes (N, {gallery.dimension})")
        self._gallery = gallery
        self._probes = np.array(probes, np.float32)
        self._lock = threading.Lock()
        self._best: BestOfState | None = None
        self._reset(gallery.state.epoch)

    def __len__(self) -> int:
        """The number of probes."""
        return len(self._probes)

    def update(self) -> BestOfState:
        """The best scores in the gallery's present state."""
        with self._lock:
            state, lost = self._catch_up()
            if self._best is None or self._best.version != state.version:
                self._follow(state, lost)
                labels = tuple(None if slot < 0 else state.epoch.names[slot] for slot in self._slots.tolist())
                self._best = BestOfState(state.version, self._scores.copy(), labels, state.label_count)
            return self._best

    def _reset(self, epoch: SlotEpoch) -> None:
        self._epoch = epoch
        self._next = 0  # rows from this number on are new
        self._scores = np.full(len(self._probes), -np.inf, np.float32)
        self._slots = np.full(len(self._probes), -1, np.int32)

    def _catch_up(self) -> tuple[GalleryState, Array]:
        """The state of now, in whose slots all is kept from here, and a mask: probes whose best label has gone."""
        lost = np.zeros(len(self._probes), bool)
        while True:
            state, alive = self._gallery.alive(self._epoch, self._slots)
            if state.epoch is self._epoch:
                return state, lost | ((self._slots >= 0) & ~alive)
            if self._epoch.following is None or self._epoch.renumbered is None:
                self._reset(state.epoch)  # all that was enrolled has been replaced
                lost = np.zeros(len(self._probes), bool)
                continue
            renumbered = np.append(self._epoch.renumbered, np.int32(-1))  # -1 stays -1
            lost |= (self._slots >= 0) & (renumbered[self._slots] < 0)
            self._slots = renumbered[self._slots]
            self._epoch = self._epoch.following

    def _follow(self, state: GalleryState, lost: Array) -> None:
        self._scores[lost], self._slots[lost] = -np.inf, -1
        if state.scoring == "nearest":
            self._take(state, np.flatnonzero(~lost), self._next)
        else:
            lost = lost | self._take_prototypes(state, ~lost)
        self._search(state, np.flatnonzero(lost))
        self._next = state.next_number

    def _take(self, state: GalleryState, probes: Array, first: int) -> None:
        """Score probes against the rows from a number on, and keep better scores."""
        if not len(probes):
            return
        for block in reversed(state.blocks):
            offsets = block.alive
            offsets = offsets[int(np.searchsorted(block.numbers[offsets], first)) :]
            for begin in range(0, len(offsets), _SLICE):
                part = offsets[begin : begin + _SLICE]
                self._keep(probes, self._probes[probes] @ block.vectors.take(part).T, block.slots[part])
            if block.numbers[0] < first:
                break

    def _take_prototypes(self, state: GalleryState, probes: Array) -> Array:
        """Score probes against the labels that have rows from the next number on; a mask of those that now score
        less against the label that was their best, so that another one may be.
        """
        if not state.blocks:
            return np.zeros(len(probes), bool)
        slots, scores = changed_scores(state, self._next, self._probes)
        column = np.full(state.slot_count + 1, -1, np.int64)
        column[slots] = np.arange(len(slots))
        changed = probes & (column[self._slots] >= 0)
        if changed.any():
            now = scores[changed, column[self._slots[changed]]]
            worse = now < self._scores[changed]
            self._scores[changed] = now
            changed[changed] = worse
        self._keep(np.flatnonzero(probes & ~changed), scores[probes & ~changed], slots)
        return changed

    def _keep(self, probes: Array, scores: Array, slots: Array) -> None:
        """Keep scores (P, R) of probes against rows or labels where they are better than the known ones."""
        if not scores.size:
            return
        columns = scores.argmax(axis=1)
        column_scores = scores[np.arange(len(probes)), columns]
        better = column_scores > self._scores[probes]
        self._scores[probes[better]] = column_scores[better]
        self._slots[probes[better]] = slots[columns[better]]

    def _search(self, state: GalleryState, probes: Array) -> None:
        """Score probes against everything."""
        self._scores[probes], self._slots[probes] = -np.inf, -1
        if not state.label_count or not len(probes):
            return
        if len(probes) > _MANY and state.scoring == "nearest":
            self._take(state, probes, 0)
            return
        queries = Queries(self._probes[probes])
        for probe, (slots, scores) in zip(probes.tolist(), best(state, queries, 1), strict=True):
            self._scores[probe], self._slots[probe] = scores[0], slots[0]


def changed_scores(state: GalleryState, first: int, probes: Array) -> tuple[Array, Array]:
    """The slots of labels that have rows from a number on, (C,) ascending, and the scores of (P, D) probes against
    them, (P, C) float32. Of labels whose prototypes count; the state has rows.
    """
    fresh = np.flatnonzero((state.slots >= 0) & (np.concatenate([b.numbers for b in state.blocks]) >= first))
    selected = np.zeros(state.slot_count + 1, bool)
    selected[state.slots[fresh]] = True
    positions = np.flatnonzero(selected[state.slots])
    slots, inverse = np.unique(state.slots[positions], return_inverse=True)
    sums = np.zeros((len(slots), probes.shape[1]))
    highest = np.full((len(slots), len(probes)), -np.inf, np.float32)
    for begin in range(0, len(positions), _SLICE):
        part = slice(begin, begin + _SLICE)
        rows = state.rows_at(positions[part])
        np.add.at(sums, inverse[part], rows.astype(np.float64))
        if state.scoring == "blend":
            np.maximum.at(highest, inverse[part], rows @ probes.T)
    scores = probes @ unit_rows(sums).T
    if state.scoring == "blend":
        scores = 0.5 * (scores + highest.T)
    return slots.astype(np.int32), scores
