"""The rows of numbers that are enrolled, by label; :mod:`runtime.gallery.embedded` searches embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from runtime.common.arrays import Array


class Enrolled(Protocol):
    """The enrolled rows of an open model by label, for any task."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order in which they were first added."""
        ...

    def remove(self, label: str) -> None:
        """Forget a label; UnknownLabelError when there is none."""
        ...

    def contents(self) -> Mapping[str, Array]:
        """Label to (N, D) float32 rows, in order; the arrays must not be written to."""
        ...

    def replace(self, rows: Mapping[str, Array]) -> None:
        """Replace all rows by ``rows`` in one step; InputError, and nothing changes, when they do not fit."""
        ...
