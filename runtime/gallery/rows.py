"""Rows by label, as one array."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from runtime.common.arrays import Array


class RowsByLabel(Mapping[str, Array]):
    """Label to (N, D) float32 rows, as a view of one array that holds those of all labels.

    A dict of a hundred thousand small arrays takes longer to make than a hundred thousand rows to read.

    Attributes:
        labels: All different, in order.
        counts: (L,) int64: how many rows each has, at least one.
        matrix: (M, D): the rows of the first label, then those of the second, and so on.
    """

    def __init__(self, labels: Sequence[str], counts: Array, matrix: Array) -> None:
        self.labels, self.counts, self.matrix = labels, counts, matrix

    @cached_property
    def ends(self) -> Array:
        """(L,) int64: the end of each label's rows, exclusive."""
        return np.cumsum(self.counts)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def __getitem__(self, label: str) -> Array:
        return self._rows(self._index[label])

    def items(self) -> ItemsView[str, Array]:
        return _Items(self)

    def slices(self, rows: int) -> Iterator[tuple[Sequence[str], Array, Array]]:
        """Yield labels, counts and rows of a few labels at a time, at least that many rows each but the last."""
        first = 0
        while first < len(self.labels):
            start = int(self.ends[first - 1]) if first else 0
            end = min(int(np.searchsorted(self.ends, start + rows)) + 1, len(self.labels))
            yield self.labels[first:end], self.counts[first:end], self.matrix[start : int(self.ends[end - 1])]
            first = end

    @cached_property
    def _index(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def _rows(self, index: int) -> Array:
        end = self.ends[index]
        return np.asarray(self.matrix[end - self.counts[index] : end])


class _Items(ItemsView[str, Array]):
    """An items view that yields pairs in order without a look-up for each."""

    _mapping: RowsByLabel

    def __iter__(self) -> Iterator[tuple[str, Array]]:
        return ((label, self._mapping._rows(index)) for index, label in enumerate(self._mapping.labels))


def rows_by_label(rows: Mapping[str, Array]) -> RowsByLabel:
    """The same rows in one array; there is at least one label, and all rows are of one length."""
    if isinstance(rows, RowsByLabel):
        return rows
    parts = list(rows.values())
    return RowsByLabel(list(rows), np.array([len(part) for part in parts], np.int64), np.concatenate(parts))


def counts_by_label(rows: Mapping[str, Array]) -> dict[str, int]:
    """The number of rows of each label."""
    if isinstance(rows, RowsByLabel):
        return dict(zip(rows.labels, rows.counts.tolist(), strict=True))
    return {label: len(label_rows) for label, label_rows in rows.items()}
