"""Rows of a gallery in blocks: immutable for readers, and appended to without copying the whole.

A block holds float32 rows as they came (:class:`PlainVectors`) or, once it is full, split into byte planes that can be
searched at a quarter of the bytes (:mod:`runtime.gallery.packed`). Each row has a number that counts up and is never
used twice, the slot of its label, and the number of the row of the same label before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from runtime.common.arrays import Array
from runtime.gallery.queries import Queries, Query

NO_ROW = -1
_SINGLE_THREAD_PRODUCTS = 1 << 18  # OpenBLAS 0.3 shares what is more
MAX_LENGTH = 1.001
"""The bound on the length of a row, whose squared length is within 1e-3 of one."""


class Vectors(Protocol):
    """(N, D) unit rows at rest, immutable."""

    dimension: int

    def __len__(self) -> int: ...

    def take(self, offsets: Array) -> Array:
        """(R, D) float32: these rows, bit for bit as they were added."""
        ...

    def keep(self, offsets: Array) -> Vectors:
        """The vectors of these rows alone."""
        ...

    def joined(self, second: Vectors) -> Vectors:
        """These rows followed by those of ``second``."""
        ...

    def all(self) -> Array:
        """(N, D) float32: every row; the array must not be written to."""
        ...

    def scores(self, queries: Queries, out: Array) -> None:
        """Write the product of each query with each row, within :meth:`bound`, to ``out`` (N, B) float32."""
        ...

    def bound(self, queries: Queries) -> Array:
        """(B,) float64: how far a score of :meth:`scores` may be from the true one."""
        ...

    def refined(self, query: Query, offsets: Array) -> Array:
        """(R,) float32: the product of one query with these rows, within :meth:`refined_bound`."""
        ...

    def refined_bound(self, query: Query) -> float:
        """The largest error of a score of :meth:`refined`."""
        ...


class PlainVectors:
    """Rows as float32."""

    def __init__(self, rows: Array) -> None:
        self.rows = rows
        self.dimension = int(rows.shape[1])
        # Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1: a sum of D products, added in whatever
        # order, is within D u / (1 - D u) of the sum of their magnitudes, which is at most the product of the lengths.
        rounding = self.dimension * 2.0**-24
        self._error = MAX_LENGTH * rounding / (1 - rounding) + 2e-7

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, offsets: Array) -> Array:
        return np.asarray(self.rows[offsets])

    def keep(self, offsets: Array) -> PlainVectors:
        return PlainVectors(self.rows[offsets])

    def joined(self, second: Vectors) -> PlainVectors:
        return PlainVectors(np.concatenate([self.rows, second.all()]))

    def all(self) -> Array:
        return self.rows

    def scores(self, queries: Queries, out: Array) -> None:
        np.matmul(self.rows, queries.rows.T, out=out)

    def bound(self, queries: Queries) -> Array:
        return np.asarray(queries.norms * self._error)

    def refined(self, query: Query, offsets: Array) -> Array:
        return np.asarray(self.rows[offsets] @ query.row)

    def refined_bound(self, query: Query) -> float:
        return query.norm * self._error


def multiply(queries: Array, rows: Array, out: Array) -> None:
    """Write the products of (B, D) queries and (N, D) rows to ``out`` (N, B), all float32, on this thread alone.

    NumPy's BLAS would share so small a product among all cores, and on a busy machine wait milliseconds for one.
    """
    if len(queries) <= 4:
        np.einsum("bd,nd->nb", queries, rows, out=out)
        return
    step = max(1, _SINGLE_THREAD_PRODUCTS // queries.size)
    for begin in range(0, len(rows), step):
        np.matmul(rows[begin : begin + step], queries.T, out=out[begin : begin + step])


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A block of adjacent rows, in the order of their numbers.

    Attributes:
        vectors: (N, D) rows.
        numbers: (N,) int64, ascending: the rows' numbers.
        slots: (N,) int32: the slot of each row's label.
        before: (N,) int64: the number of the row of the same label before it, or :data:`NO_ROW`.
        norms: (N,) float64: the length of the sum of the label's rows up to each row; empty where they are not needed.
        removed: (R,) int32, ascending: offsets of rows that are no longer there.
    """

    vectors: Vectors
    numbers: Array
    slots: Array
    before: Array
    norms: Array
    removed: Array

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def alive(self) -> Array:
        """The offsets of the rows that have not been removed, ascending."""
        offsets = np.arange(len(self.slots), dtype=np.int32)
        return np.delete(offsets, self.removed) if len(self.removed) else offsets

    def without(self, offsets: Array) -> Block:
        """The block without these rows; their memory is freed once removed rows are a sixteenth of the block."""
        removed = np.union1d(self.removed, offsets).astype(np.int32)
        smaller = replace(self, removed=removed)
        return smaller.compacted() if len(removed) * 16 > len(self) else smaller

    def compacted(self) -> Block:
        """The block without its removed rows."""
        if not len(self.removed):
            return self
        alive = self.alive
        return Block(
            self.vectors.keep(alive),
            self.numbers[alive],
            self.slots[alive],
            self.before[alive],
            self.norms[alive] if len(self.norms) else self.norms,
            np.empty(0, np.int32),
        )

    def joined(self, second: Block) -> Block:
        """The rows of both blocks, without the removed ones."""
        first, second = self.compacted(), second.compacted()
        return Block(
            first.vectors.joined(second.vectors),
            np.concatenate([first.numbers, second.numbers]),
            np.concatenate([first.slots, second.slots]),
            np.concatenate([first.before, second.before]),
            np.concatenate([first.norms, second.norms]),
            np.empty(0, np.int32),
        )


class Tail:
    """The growing block: a state of the gallery sees its first rows, a writer fills the rows behind them."""

    def __init__(self, dimension: int, capacity: int) -> None:
        self.capacity = capacity
        self._size = 0
        self._rows = np.empty((0, dimension), np.float32)
        self._numbers, self._before = np.empty(0, np.int64), np.empty(0, np.int64)
        self._slots = np.empty(0, np.int32)
        self._norms = np.empty(0, np.float64)

    def __len__(self) -> int:
        return self._size

    @property
    def room(self) -> int:
        """The number of rows that still fit."""
        return self.capacity - self._size

    def append(self, rows: Array, numbers: Array, slots: Array, before: Array, norms: Array) -> None:
        """Append rows; at most :attr:`room`."""
        start, end = self._size, self._size + len(rows)
        if end > len(self._rows):
            size = min(max(2 * len(self._rows), end, 16), self.capacity)
            self._rows, self._numbers, self._before, self._slots = (
                _grown(column, size) for column in (self._rows, self._numbers, self._before, self._slots)
            )
            self._norms = _grown(self._norms, size) if len(norms) else self._norms
        self._rows[start:end] = rows
        self._numbers[start:end], self._slots[start:end], self._before[start:end] = numbers, slots, before
        if len(norms):
            self._norms[start:end] = norms
        self._size = end

    @classmethod
    def of(cls, block: Block, dimension: int, capacity: int) -> Tail:
        """Make a tail that starts with the rows of a block."""
        tail = cls(dimension, capacity)
        tail.append(block.vectors.all(), block.numbers, block.slots, block.before, block.norms)
        return tail

    def block(self, removed: Array) -> Block:
        """The present rows as an immutable block."""
        end = self._size
        return Block(
            PlainVectors(self._rows[:end]),
            self._numbers[:end],
            self._slots[:end],
            self._before[:end],
            self._norms[:end],
            removed,
        )


def _grown(column: Array, size: int) -> Array:
    larger = np.empty((size, *column.shape[1:]), column.dtype)
    larger[: len(column)] = column
    return larger
