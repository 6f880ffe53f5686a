"""One immutable state of a gallery, as a reader sees it: blocks of rows, and the names of their labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from runtime.common.arrays import Array
from runtime.gallery.blocks import Block

Scoring = Literal["nearest", "prototype", "blend"]

_SLICE = 4096  # rows that are rebuilt at once


@dataclass(eq=False)
class SlotEpoch:
    """The period in which slots keep their meaning; it ends when the labels are numbered anew.

    Attributes:
        names: The label of each slot.
        renumbered: Old slot to new slot, -1 for labels that were forgotten; None while the epoch lasts.
        following: The epoch after this one.
    """

    names: list[str]
    renumbered: Array | None = None
    following: SlotEpoch | None = None


@dataclass(frozen=True)
class GalleryState:
    """An immutable state: a writer replaces it by a new one, readers keep the one they took.

    Attributes:
        blocks: Rows in the order of their numbers; none of them is empty.
        scoring: The score of a query against a label.
        epoch: The period in which these slots are valid.
        slot_count: The number of slots, with those of forgotten labels.
        label_count, row_count: The number of enrolled labels and rows.
        next_number: The number that the next row gets.
        version: Counts the changes.
        sums: The sum of the rows, (D,) float64, of some labels by their slots; where labels are scored as prototypes.
    """

    blocks: tuple[Block, ...]
    scoring: Scoring
    epoch: SlotEpoch
    slot_count: int
    label_count: int
    row_count: int
    next_number: int
    version: int
    sums: Mapping[int, Array] = field(default_factory=dict)

    @cached_property
    def prototypes(self) -> Array | None:
        """(L, D) float64 in the order of the labels: the directions of their means; None unless all sums are here."""
        if len(self.sums) < self.label_count:
            return None
        sums = np.stack([self.sums[slot] for slot in self.live_slots.tolist()])
        lengths = np.sqrt(np.einsum("ld,ld->l", sums, sums))
        return np.asarray(sums / np.maximum(lengths, self.counts[self.live_slots] * 1e-12)[:, None])

    @cached_property
    def starts(self) -> Array:
        """(len(blocks) + 1,) int64: the position of each block's first row, and of the end. Removed rows count."""
        return np.cumsum([0, *(len(block) for block in self.blocks)], dtype=np.int64)

    @cached_property
    def slots(self) -> Array:
        """(positions,) int32: the slot of the label of each position, -1 where the row was removed."""
        if not self.blocks:
            return np.empty(0, np.int32)
        slots = np.concatenate([block.slots for block in self.blocks])
        slots[self.removed] = -1
        return slots

    @cached_property
    def removed(self) -> Array:
        """Positions of removed rows, ascending."""
        parts = [block.removed + start for block, start in zip(self.blocks, self.starts, strict=False)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    @cached_property
    def live_slots(self) -> Array:
        """(L,) int32: the slots of the labels, in the order of enrolment."""
        seen = np.zeros(self.slot_count + 1, bool)
        seen[self.slots] = True  # -1 is the one behind the last
        return np.flatnonzero(seen[:-1]).astype(np.int32)

    @cached_property
    def norms(self) -> Array:
        """(slots,) float64: the length of the sum of each label's rows; only where prototypes are scored."""
        norms = np.zeros(self.slot_count + 1)
        # Of several rows of a label the last one counts, as NumPy assigns in order.
        norms[self.slots] = np.concatenate([block.norms for block in self.blocks])
        return norms[:-1]

    @cached_property
    def inverse_norms(self) -> Array:
        """(slots,) float64: what the sum of a label's scores is multiplied by for the score of its prototype."""
        return 1 / np.maximum(self.norms, np.maximum(self.counts, 1) * 1e-12)

    @cached_property
    def spreads(self) -> Array:
        """(slots,) float64: how far a prototype's score may be off, in multiples of what a row's may be."""
        return self.counts * self.inverse_norms

    @cached_property
    def counts(self) -> Array:
        """(slots,) int64: the number of rows of each label."""
        return np.bincount(self.slots + 1, minlength=self.slot_count + 1)[1:]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order of enrolment."""
        names = self.epoch.names
        return tuple(names[slot] for slot in self.live_slots.tolist())

    def __len__(self) -> int:
        """The number of positions, removed rows included."""
        return int(self.starts[-1])

    def behind(self, number: int) -> GalleryState:
        """The state of the last blocks, from the first with a row of at least that number; slots stay the same."""
        first = next((index for index, block in enumerate(self.blocks) if block.numbers[-1] >= number), None)
        blocks = () if first is None else self.blocks[first:]
        return self if len(blocks) == len(self.blocks) else replace(self, blocks=blocks)

    def positions_of(self, numbers: Array) -> Array:
        """The ascending positions of the rows with these ascending numbers, without removed rows."""
        parts, begin = [], 0
        for block, start in zip(self.blocks, self.starts.tolist(), strict=False):
            end = int(np.searchsorted(numbers, block.numbers[-1], side="right"))
            offsets = np.searchsorted(block.numbers, numbers[begin:end])
            offsets = offsets[block.numbers[offsets] == numbers[begin:end]]
            begin = end
            if len(block.removed):
                offsets = np.setdiff1d(offsets, block.removed, assume_unique=True)
            parts.append(offsets + start)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def positions_of_labels(self, slots: Array) -> Array:
        """The positions of all rows of these labels, ascending."""
        selected = np.zeros(self.slot_count + 1, bool)
        selected[slots] = True
        selected[-1] = False  # removed rows
        return np.flatnonzero(selected[self.slots])

    def parts(self, positions: Array) -> Iterator[tuple[slice, Block, Array]]:
        """Split ascending positions by block: their places among all, the block, and the offsets in it."""
        bounds = np.searchsorted(positions, self.starts).tolist()
        for block, start, begin, end in zip(self.blocks, self.starts.tolist(), bounds, bounds[1:], strict=False):
            if begin < end:
                part = slice(begin, end)
                yield part, block, positions[part] - start

    def slots_at(self, positions: Array) -> Array:
        """The slots at these ascending positions, without a pass over all of them."""
        result = np.empty(len(positions), np.int32)
        for part, block, offsets in self.parts(positions):
            result[part] = block.slots[offsets]
        return result

    def rows_at(self, positions: Array) -> Array:
        """(R, D) float32: the rows at these ascending positions, bit for bit as they were added."""
        result = np.empty((len(positions), self.blocks[0].vectors.dimension if self.blocks else 0), np.float32)
        for part, block, offsets in self.parts(positions):
            result[part] = block.vectors.take(offsets)
        return result

    def grouped(self) -> Iterator[tuple[str, Array]]:
        """Each label with its (N, D) float32 rows, in the order of enrolment; a few thousand rows at a time."""
        positions = np.flatnonzero(self.slots >= 0)
        order = positions[np.argsort(self.slots[positions], kind="stable")]
        counts, names = self.counts, self.epoch.names
        begin = 0
        pending: list[int] = []
        size = 0
        for slot in (*self.live_slots.tolist(), None):
            if pending and (slot is None or size + counts[slot] > _SLICE):
                ahead = order[begin : begin + size]
                sorting = np.argsort(ahead, kind="stable")
                rows = np.empty((size, self.blocks[0].vectors.dimension), np.float32)
                rows[sorting] = self.rows_at(ahead[sorting])
                ends = np.cumsum(counts[pending]).tolist()
                for known, end in zip(pending, ends, strict=True):
                    yield names[known], rows[end - counts[known] : end]
                begin, pending, size = begin + size, [], 0
            if slot is not None:
                pending.append(slot)
                size += int(counts[slot])
