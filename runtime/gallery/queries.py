"""The queries of a search, in the forms that blocks take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from runtime.common.arrays import Array

_FINER = 254  # steps of the second plane in one of the first


class Queries:
    """A batch of queries: (B, D) float32 rows.

    Attributes:
        rows: The queries, C-contiguous.
        norms: (B,) float64: their lengths; not finite where a query is not.
    """

    def __init__(self, rows: Array) -> None:
        self.rows = np.ascontiguousarray(rows, np.float32)
        self.norms: Array = np.sqrt(np.einsum("bd,bd->b", self.rows, self.rows, dtype=np.float64))
        self._codes: dict[int, Codes] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def codes(self, planes: int) -> Codes:
        """The queries as codes of one or two bytes per number."""
        if planes not in self._codes:
            self._codes[planes] = codes_of(self.rows, self.norms, planes)
        return self._codes[planes]


class Query:
    """One of several queries."""

    def __init__(self, queries: Queries, index: int) -> None:
        self._queries, self._index = queries, index
        self.row = queries.rows[index]
        self.norm = float(queries.norms[index])

    @cached_property
    def codes(self) -> Codes:
        """The query as codes of two bytes per number."""
        return self._queries.codes(2).one(self._index)


@dataclass(frozen=True, slots=True)
class Codes:
    """Queries as integers: a query is about ``steps`` times its first plane plus a 254th of its second.

    Attributes:
        weights: (D, planes * B) int8, -127..127: the first plane of all queries, then the second.
        steps: (B,) float32.
        loss: (B,) float64: the length of what is left out, as a share of the query's.
    """

    weights: Array
    steps: Array
    loss: Array

    def one(self, index: int) -> Codes:
        """The codes of one query."""
        count = len(self.steps)
        return Codes(self.weights[:, index::count], self.steps[index : index + 1], self.loss[index : index + 1])

    def write_scores(self, sums: Array, scale: Array, out: Array) -> None:
        """From products with :attr:`weights`, (N, planes * B), of rows that are ``scale`` (N,) times their codes, to
        the queries' scores, ``out`` (N, B) float32.
        """
        count = len(self.steps)
        if sums.shape[1] > count:
            sums = sums[:, :count] + sums[:, count:] * (1 / _FINER)
        np.multiply(sums, scale[:, None], out=out, casting="same_kind", dtype=np.float32)
        out *= self.steps


def codes_of(rows: Array, norms: Array, planes: int) -> Codes:
    """The codes of (B, D) float32 queries of these lengths."""
    sound = np.isfinite(norms)
    # What is not finite has no codes; the search does not look at its scores.
    rows = rows if sound.all() else np.where(sound[:, None], rows, np.float32(0))
    peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    steps = np.where(peaks > 0, peaks, np.float32(1)) / np.float32(127)
    scaled = rows / steps[:, None].astype(np.float64)
    first = np.rint(scaled)
    left = scaled - first
    parts = [first]
    if planes == 2:
        second = np.rint(left * _FINER)
        left -= second / _FINER
        parts.append(second)
    lengths = np.sqrt(np.einsum("bd,bd->b", left, left)) * steps
    loss = lengths / np.maximum(np.where(sound, norms, 1), 1e-30)
    return Codes(np.concatenate(parts).T.astype(np.int8), steps, loss)
