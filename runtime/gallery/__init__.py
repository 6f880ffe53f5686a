"""Where enrolled embeddings live. A gallery is a small protocol;
:mod:`runtime.gallery.embedded` is the one in process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from runtime.common.arrays import Array
from runtime.results import Match


class Enrolled(Protocol):
    """What a predictor remembers, whatever its task makes of it: rows of numbers by label."""

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
        """Forget all and take ``rows`` in one step; InputError, and nothing changes, when they do not fit."""
        ...


class Gallery(Protocol):
    """Embeddings by label. Threads may search while another one adds."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order in which they were first added."""
        ...

    def add(self, label: str, embeddings: Array) -> None:
        """Add (N, D) float32 unit rows to a label, making it if it is new."""
        ...

    def remove(self, label: str) -> None:
        """Forget a label and all its embeddings; UnknownLabelError when there is none."""
        ...

    def search(self, queries: Array, top_k: int) -> list[tuple[Match, ...]]:
        """The best labels for each of (N, D) float32 unit rows, best first."""
        ...
