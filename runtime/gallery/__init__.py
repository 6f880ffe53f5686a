"""Where enrolled embeddings live. A gallery is a small protocol;
:mod:`runtime.gallery.embedded` is the one in process.
"""

from __future__ import annotations

from typing import Protocol

from runtime.arrays import Array
from runtime.results import Match


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
