"""Candidate rows of a search, gathered from their blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import cast

import numpy as np

from runtime.common.arrays import Array
from runtime.gallery.blocks import Vectors
from runtime.gallery.packed import PackedVectors, gathered
from runtime.gallery.queries import Query
from runtime.gallery.state import GalleryState

_GATHERED = 4096  # rows up to which it pays to copy them together before they are looked at
_SLICE = 4096  # rows that are rebuilt at once


class Candidates:
    """Rows with the slots of their labels.

    Attributes:
        slots: (R,) int32.
    """

    def __init__(self, slots: Array, parts: Sequence[tuple[Vectors, Array]]) -> None:
        self.slots = slots
        self._parts = parts  # vectors, and offsets of rows in them; together in the order of ``slots``

    @classmethod
    def at(cls, state: GalleryState, positions: Array) -> Candidates:
        """The candidates at ascending positions."""
        parts: list[tuple[Vectors, Array]] = []
        slots = np.empty(len(positions), np.int32)
        for part, block, offsets in state.parts(positions):
            slots[part] = block.slots[offsets]
            parts.append((block.vectors, offsets))
        return cls(slots, _together(parts) if len(positions) <= _GATHERED else parts)

    def only(self, mask: Array) -> Candidates:
        """The candidates that a mask (R,) selects."""
        parts, begin = [], 0
        for vectors, offsets in self._parts:
            taken = offsets[mask[begin : begin + len(offsets)]]
            begin += len(offsets)
            if len(taken):
                parts.append((vectors, taken))
        return Candidates(self.slots[mask], parts)

    def refined(self, query: Query) -> tuple[Array, float]:
        """(R,) float32: the products of the query with the rows, and how far they may be from the true ones."""
        scores = [vectors.refined(query, offsets) for vectors, offsets in self._parts]
        return np.concatenate(scores), max(vectors.refined_bound(query) for vectors, _ in self._parts)

    def rows(self) -> Iterator[tuple[slice, Array]]:
        """Yield the rows as float64, a few thousand at a time: their places among all candidates, and (N, D) values."""
        done = 0
        for vectors, offsets in self._parts:
            for begin in range(0, len(offsets), _SLICE):
                rows = vectors.take(offsets[begin : begin + _SLICE]).astype(np.float64)
                yield slice(done, done + len(rows)), rows
                done += len(rows)


def _together(parts: Sequence[tuple[Vectors, Array]]) -> list[tuple[Vectors, Array]]:
    """The same rows with adjacent packed parts merged, so that one call replaces many."""
    pairs: list[tuple[Vectors, Array]] = []
    for is_packed, group in groupby(parts, key=lambda part: isinstance(part[0], PackedVectors)):
        members = list(group)
        if is_packed:
            vectors = gathered(cast("Sequence[tuple[PackedVectors, Array]]", members))
            members = [(vectors, np.arange(len(vectors)))]
        pairs += members
    return pairs
