"""Queries of a search, in the forms in which blocks take them."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from runtime.arrays import Array


class Queries:
    """(B, D) float32 rows.

    Attributes:
        rows: The queries, C-contiguous.
        norms: (B,) float64: their lengths; not finite where a query is not.
    """

    def __init__(self, rows: Array) -> None:
        self.rows = np.ascontiguousarray(rows, np.float32)
        self.norms: Array = np.sqrt(np.einsum("bd,bd->b", self.rows, self.rows, dtype=np.float64))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Queries:
        return Queries(self.rows[part])

    @cached_property
    def wide(self) -> Array:
        """The queries in float64."""
        return self.rows.astype(np.float64)
