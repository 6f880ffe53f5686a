"""The writer's side of a gallery: adds and removes rows, and creates a new immutable state for each change."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from runtime.common.arrays import Array
from runtime.gallery.blocks import NO_ROW, Block, PlainVectors, Tail
from runtime.gallery.indexing import Indexing
from runtime.gallery.kernels import best_kernel
from runtime.gallery.labels import Labels
from runtime.gallery.packed import packed, packs
from runtime.gallery.state import GalleryState, Scoring, SlotEpoch

TAIL_ROWS = 1024
"""Rows that the growing block takes before a new one begins. Splitting them into planes takes some 4 ms."""
_BLOCK_ROWS = 16384  # to which neighbours are joined: fewer calls a search, still less than 10 ms a copy
_GAPS = 1024  # slots of forgotten labels, beyond as many as there are labels, that are borne
_SUMS = 256  # labels of which the sum of rows is kept at hand: few labels are then found without their rows
_NONE = np.empty(0, np.int32)


class Store:
    """The rows by label, for one writer at a time. Each method leaves its result in :attr:`state`.

    Args:
        dimension: D, the length of a row.
        scoring: The score of a query against a label.
        kernel: The kernel of the first pass; None for the fastest.
        labels: For how many labels to make room.
        index_from: From how many rows on there is an approximate index; None for never.
    """

    def __init__(
        self,
        dimension: int,
        scoring: Scoring,
        *,
        kernel: str | None = None,
        labels: int = 0,
        index_from: int | None = None,
    ) -> None:
        self._dimension = dimension
        self._kernel = kernel
        self._labels = Labels(room=labels)
        self._last = np.full(max(labels, 16), NO_ROW, np.int64)  # by slot: the number of the label's last row
        self._full: list[Block] = []
        self._tail = Tail(dimension, TAIL_ROWS)
        self._tail_removed = _NONE
        self._sums: OrderedDict[int, Array] = OrderedDict()
        epoch = SlotEpoch(self._labels.names)
        self.state = GalleryState((), scoring, epoch, 0, 0, 0, 0, 0)
        self.indexing = None if index_from is None else Indexing(self, index_from)

    def add(self, labels: Sequence[str], counts: Array, rows: Array) -> None:
        """Add (N, D) float32 unit rows, ``counts`` of them to each of ``labels``, which are all different."""
        slots = np.array(list(map(self._labels.find_or_add, labels)), np.int32)
        self._make_room(len(self._labels.names))
        ends = np.cumsum(counts)
        first = self.state.next_number
        before = np.arange(first - 1, first - 1 + len(rows))
        before[ends - counts] = self._last[slots]
        norms = self._norms(slots, ends, rows) if self.state.scoring != "nearest" else np.empty(0)
        self._last[slots] = first + ends - 1
        owners = np.repeat(slots, counts)
        numbers = np.arange(first, first + len(rows))
        begin = 0
        while begin < len(rows):
            rest = len(rows) - begin
            # Many rows at once need not go through the tail, nor the last of them be a small block.
            whole = not len(self._tail) and rest >= TAIL_ROWS
            end = begin + (rest if whole and rest < 2 * _BLOCK_ROWS else _BLOCK_ROWS if whole else self._tail.room)
            part = slice(begin, min(end, len(rows)))
            columns = rows[part], numbers[part], owners[part], before[part], norms[part]
            if whole:
                self._full.append(self._sealed(Block(PlainVectors(columns[0]), *columns[1:], removed=_NONE)))
            else:
                self._tail.append(*columns)
                if not self._tail.room:
                    self._seal()
            begin = part.stop
        self._publish(rows=len(rows), next_number=first + len(rows))

    def slot_of(self, label: str) -> int | None:
        """The slot of a label; None when it is not enrolled."""
        return self._labels.find(label)

    def remove(self, label: str) -> bool:
        """Remove a label and its rows; False when there is none."""
        slot = self._labels.find(label)
        if slot is None:
            return False
        count = 0
        for index, offsets in list(self._rows_of(slot)):
            count += len(offsets)
            if index == len(self._full):
                block = self._tail.block(self._tail_removed).without(offsets)
                if len(block.removed):
                    self._tail_removed = block.removed
                else:
                    self._tail, self._tail_removed = Tail.of(block, self._dimension, TAIL_ROWS), _NONE
            else:
                self._full[index] = self._full[index].without(offsets)
        self._join()
        self._labels.discard(label)
        self._last[slot] = NO_ROW
        self._sums.pop(slot, None)
        self._publish(rows=-count, next_number=self.state.next_number)
        if self.state.slot_count > 2 * self.state.label_count + _GAPS:
            self._renumber()
        return True

    def follow(self, before: Store) -> None:
        """Take the place of another store: versions continue from its version."""
        self.state = replace(self.state, version=before.state.version + 1)

    def alive(self, slots: Array) -> Array:
        """(N,) bool: whether each of these slots of the current epoch belongs to an enrolled label."""
        return np.asarray(self._last[slots] != NO_ROW)

    def _make_room(self, slots: int) -> None:
        if slots > len(self._last):
            more = max(slots - len(self._last), len(self._last) // 2)
            self._last = np.concatenate([self._last, np.full(more, NO_ROW, np.int64)])

    def _rows_of(self, slot: int) -> Iterator[tuple[int, Array]]:
        """The label's rows, last to first: a block's index – the tail comes after the full ones – and offsets."""
        blocks = [*self._full, self._tail.block(self._tail_removed)]
        firsts = [int(block.numbers[0]) for block in blocks if len(block)]
        number = int(self._last[slot])
        while number != NO_ROW:
            index = bisect_right(firsts, number) - 1
            offsets = np.flatnonzero(blocks[index].slots == slot)
            yield index, offsets
            number = int(blocks[index].before[offsets[0]])

    def _norms(self, slots: Array, ends: Array, rows: Array) -> Array:
        """The length of the sum of its label's rows at the last row of each label; zero at the others."""
        norms = np.zeros(len(rows))
        sums = _sums(rows, ends)
        for index in np.flatnonzero(self._last[slots] != NO_ROW).tolist():
            sums[index] += self._sum(int(slots[index]))
        norms[ends - 1] = np.sqrt(np.einsum("ld,ld->l", sums, sums))
        for index, slot in list(enumerate(slots.tolist()))[-_SUMS:]:
            self._sums[slot] = sums[index].copy()
            self._sums.move_to_end(slot)
        while len(self._sums) > _SUMS:
            self._sums.popitem(last=False)
        return norms

    def _sum(self, slot: int) -> Array:
        """The sum of a label's rows, (D,) float64."""
        known = self._sums.get(slot)
        if known is not None:
            return known
        blocks = [*self._full, self._tail.block(self._tail_removed)]
        parts = [blocks[index].vectors.take(offsets) for index, offsets in self._rows_of(slot)]
        return np.asarray(np.concatenate(parts).sum(axis=0, dtype=np.float64))

    def _seal(self) -> None:
        """Turn the full tail into a block that does not grow, joined with neighbours of its size."""
        self._full.append(self._sealed(self._tail.block(self._tail_removed).compacted()))
        self._tail, self._tail_removed = Tail(self._dimension, TAIL_ROWS), _NONE
        while len(self._full) > 1 and len(self._full[-2]) <= 2 * len(self._full[-1]) <= _BLOCK_ROWS:
            second, first = self._full.pop(), self._full.pop()
            self._full.append(first.joined(second))

    def _sealed(self, block: Block) -> Block:
        """The block in the form in which it is searched."""
        rows = block.vectors.all()
        kernel = best_kernel(self._kernel) if packs(self._dimension) else None
        return replace(block, vectors=PlainVectors(rows.copy()) if kernel is None else packed(rows, kernel))

    def _join(self) -> None:
        """Drop empty blocks after a removal, and join small neighbours."""
        blocks: list[Block] = []
        for block in self._full:
            if not len(block):
                continue
            if blocks and len(blocks[-1]) + len(block) <= TAIL_ROWS:
                blocks[-1] = blocks[-1].joined(block)
            else:
                blocks.append(block)
        self._full = blocks

    def _renumber(self) -> None:
        """Renumber the labels' slots without gaps. Readers of earlier states keep their names."""
        state, old = self.state, self.state.epoch
        live = state.live_slots
        slots = np.full(state.slot_count, -1, np.int32)
        slots[live] = np.arange(len(live), dtype=np.int32)
        self._labels = Labels()
        for label in state.labels:
            self._labels.find_or_add(label)
        self._last = np.concatenate([self._last[live], np.full(16, NO_ROW, np.int64)])
        self._sums = OrderedDict((int(slots[slot]), known) for slot, known in self._sums.items())
        self._full = [replace(block, slots=slots[block.slots]) for block in self._full]
        tail = self._tail.block(self._tail_removed).compacted()
        self._tail = Tail.of(replace(tail, slots=slots[tail.slots]), self._dimension, TAIL_ROWS)
        self._tail_removed = _NONE
        old.renumbered, old.following = slots, SlotEpoch(self._labels.names)
        self._publish(rows=0, next_number=state.next_number, epoch=old.following)

    def _publish(self, *, rows: int, next_number: int, epoch: SlotEpoch | None = None) -> None:
        state = self.state
        tail = (self._tail.block(self._tail_removed),) if len(self._tail) else ()
        self.state = GalleryState(
            blocks=(*self._full, *tail),
            scoring=state.scoring,
            epoch=epoch or state.epoch,
            slot_count=len(self._labels.names),
            label_count=len(self._labels),
            row_count=state.row_count + rows,
            next_number=next_number,
            version=state.version + 1,
            sums=dict(self._sums),
        )
        if self.indexing is not None:
            self.indexing.follow()


def _sums(rows: Array, ends: Array) -> Array:
    """(L, D) float64: the sums of the rows between consecutive ``ends``, which ascend.

    Row after row of all labels at once, which is several times as fast as ``np.add.reduceat`` where labels have few.
    """
    starts = np.concatenate([[0], ends[:-1]])
    sums: Array = rows[starts].astype(np.float64)
    longer, step = np.flatnonzero(ends - starts > 1), 1
    while len(longer):
        sums[longer] += rows[starts[longer] + step]
        step += 1
        longer = longer[ends[longer] - starts[longer] > step]
    return sums
