"""The best score of rows that stay, such as known strangers, against a gallery that changes.

An addition costs a product with the rows that are new; a removal, a search for those rows alone whose best label it
was. Nothing is scored twice, whatever is enrolled.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from runtime.arrays import Array, unit_rows
from runtime.errors import InputError
from runtime.gallery.queries import Queries
from runtime.gallery.search import best
from runtime.gallery.state import Epoch, State

if TYPE_CHECKING:
    from runtime.gallery.embedded import EmbeddedGallery

_SLICE = 1024  # rows of the gallery that are scored at once
_MANY = 64  # probes for which one product with all rows takes less time than a search for each


@dataclass(frozen=True, slots=True)
class Best:
    """What :class:`BestScores` knows of one state of the gallery.

    Attributes:
        version: The gallery's version.
        scores: (N,) float32: each probe's best score over all labels but its own; -inf where there is none.
        labels: The name of each probe's best label, None where there is none.
        own: The name of the label that does not count for each probe, None where it is not enrolled.
        label_count: How many labels there were.
    """

    version: int
    scores: Array
    labels: tuple[str | None, ...]
    own: tuple[str | None, ...]
    label_count: int


class BestScores:
    """Follows what probes score against the labels of a gallery. Threads may share it.

    Args:
        gallery: Whose labels.
        probes: (N, D) float32 unit rows; copied.
        own: For each probe the label that does not count for it, enrolled or not; None where all do. So what is
            enrolled can be scored against the labels of others.

    Raises:
        InputError: The probes are not (N, D), or ``own`` is not one entry for each.
    """

    def __init__(self, gallery: EmbeddedGallery, probes: Array, own: Sequence[str | None] | None = None) -> None:
        if probes.ndim != 2 or probes.shape[1] != gallery.dimension:
            raise InputError(f"probes of shape {probes.shape}; this gallery takes (N, {gallery.dimension})")
        if own is not None and len(own) != len(probes):
            raise InputError(f"{len(own)} own labels for {len(probes)} probes; give one for each, or None")
        self._gallery = gallery
        self._probes = np.array(probes, np.float32)
        self._own: dict[str, list[int]] = {}
        for index, label in enumerate(own or ()):
            if label is not None:
                self._own.setdefault(label, []).append(index)
        self._excludes = bool(self._own)
        self._lock = threading.Lock()
        self._best: Best | None = None
        self._reset(gallery.state.epoch)

    def __len__(self) -> int:
        """The number of probes."""
        return len(self._probes)

    def update(self) -> Best:
        """The best scores in the gallery's state of now."""
        with self._lock:
            state, lost = self._catch_up()
            if self._best is None or self._best.version != state.version:
                self._follow(state, lost)
                labels, own = (
                    tuple(None if slot < 0 else state.epoch.names[slot] for slot in slots.tolist())
                    for slots in (self._slots, self._own_slots)
                )
                self._best = Best(state.version, self._scores.copy(), labels, own, state.label_count)
            return self._best

    def _reset(self, epoch: Epoch) -> None:
        self._epoch = epoch
        self._next = self._known_slots = 0  # rows from this number on, and labels from this slot on, are new
        self._scores = np.full(len(self._probes), -np.inf, np.float32)
        self._slots = np.full(len(self._probes), -1, np.int32)
        self._own_slots = np.full(len(self._probes), -1, np.int32)

    def _catch_up(self) -> tuple[State, Array]:
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
            self._slots, self._own_slots = renumbered[self._slots], renumbered[self._own_slots]
            self._known_slots = int((self._epoch.renumbered[: self._known_slots] >= 0).sum())
            self._epoch = self._epoch.following

    def _follow(self, state: State, lost: Array) -> None:
        for slot in range(self._known_slots, state.slot_count) if self._own else ():
            self._own_slots[self._own.get(state.epoch.names[slot], [])] = slot
        self._known_slots = state.slot_count
        self._scores[lost], self._slots[lost] = -np.inf, -1
        if state.scoring == "nearest":
            self._take(state, np.flatnonzero(~lost), self._next)
        else:
            lost = lost | self._take_prototypes(state, ~lost)
        self._search(state, np.flatnonzero(lost))
        self._next = state.next_number

    def _take(self, state: State, probes: Array, first: int) -> None:
        """Score probes against the rows from a number on, and keep what is better."""
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

    def _take_prototypes(self, state: State, probes: Array) -> Array:
        """Score probes against the labels that have rows from the next number on; a mask of those that now score
        less against the label that was their best, so that another one may be.
        """
        if not state.blocks:
            return np.zeros(len(probes), bool)
        slots, prototypes = changed_prototypes(state, self._next)
        scores = self._probes @ prototypes.T
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
        """Take scores (P, R) of probes against rows or labels where they are better than what is known."""
        if not scores.size:
            return
        if self._excludes:
            scores = np.where(self._own_slots[probes][:, None] == slots, -np.inf, scores)
        columns = scores.argmax(axis=1)
        found = scores[np.arange(len(probes)), columns]
        better = found > self._scores[probes]
        self._scores[probes[better]] = found[better]
        self._slots[probes[better]] = slots[columns[better]]

    def _search(self, state: State, probes: Array) -> None:
        """Score probes against everything."""
        self._scores[probes], self._slots[probes] = -np.inf, -1
        if not state.label_count or not len(probes):
            return
        if len(probes) > _MANY and state.scoring == "nearest":
            self._take(state, probes, 0)
            return
        queries = Queries(self._probes[probes])
        for probe, (slots, scores) in zip(
            probes.tolist(), best(state, queries, 2 if self._excludes else 1), strict=True
        ):
            others = np.flatnonzero(slots != self._own_slots[probe])
            if len(others):
                self._scores[probe], self._slots[probe] = scores[others[0]], slots[others[0]]


class LeaveOneOut(BestScores):
    """Follows what a bounded sample of the enrolled rows scores against the labels that are not theirs.

    The sample is that of the rows whose numbers have the smallest hashes: it is the same for the same gallery, a new
    row joins it with the chance that it stands for, and hardly ever does one change.

    Args:
        gallery: Whose rows and labels.
        size: Rows of the sample at most.
    """

    def __init__(self, gallery: EmbeddedGallery, *, size: int = 512) -> None:
        self._size = size
        self._numbers = np.empty(0, np.int64)
        super().__init__(gallery, np.empty((0, gallery.dimension), np.float32))
        self._excludes = True

    @property
    def probes(self) -> Array:
        """(N, D) float32: the rows of the sample, as of the last update."""
        return self._probes

    def _reset(self, epoch: Epoch) -> None:
        self._probes, self._numbers = self._probes[:0], self._numbers[:0]
        super()._reset(epoch)

    def _follow(self, state: State, lost: Array) -> None:
        numbers = state.numbers_at(state.positions_of(self._numbers))
        if len(numbers) < len(self._numbers):  # one has gone: others take its place
            known = state.numbers_at(np.flatnonzero(state.slots >= 0))
        else:
            known = np.concatenate([numbers, state.numbers_from(self._next)])
        hashes = _hashes(known)
        chosen = known[np.argsort(hashes, kind="stable")[: self._size]]
        kept = np.isin(self._numbers, chosen)
        positions = state.positions_of(np.sort(chosen[~np.isin(chosen, self._numbers)]))
        count = len(positions)
        self._numbers = np.concatenate([self._numbers[kept], state.numbers_at(positions)])
        self._probes = np.concatenate([self._probes[kept], state.rows_at(positions)]) if count else self._probes[kept]
        self._scores = np.concatenate([self._scores[kept], np.full(count, -np.inf, np.float32)])
        self._slots = np.concatenate([self._slots[kept], np.full(count, -1, np.int32)])
        self._own_slots = np.concatenate([self._own_slots[kept], state.slots_at(positions)])
        super()._follow(state, np.concatenate([lost[kept], np.ones(count, bool)]))


def _hashes(numbers: Array) -> Array:
    """(N,) uint64: the finaliser of SplitMix64."""
    value = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(value ^ (value >> np.uint64(31)))


def changed_prototypes(state: State, first: int) -> tuple[Array, Array]:
    """The slots of labels that have rows from a number on, (C,) ascending, and their prototypes, (C, D) float32.

    The state has rows.
    """
    fresh = np.flatnonzero((state.slots >= 0) & (np.concatenate([b.numbers for b in state.blocks]) >= first))
    wanted = np.zeros(state.slot_count + 1, bool)
    wanted[state.slots[fresh]] = True
    positions = np.flatnonzero(wanted[state.slots])
    slots, inverse = np.unique(state.slots[positions], return_inverse=True)
    sums = np.zeros((len(slots), state.blocks[0].vectors.dimension))
    for begin in range(0, len(positions), _SLICE):
        part = slice(begin, begin + _SLICE)
        np.add.at(sums, inverse[part], state.rows_at(positions[part]).astype(np.float64))
    return slots.astype(np.int32), unit_rows(sums)
