"""The gallery in process: exact cosine search by one matrix product."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from runtime.arrays import Array, unit_rows
from runtime.errors import InputError, UnknownLabelError
from runtime.results import Match
from runtime.threshold import Impostors

Scoring = Literal["nearest", "prototype"]

# Rows that stand for the gallery when impostor scores are measured: enough for a mean and a deviation, and the cost
# of a first prediction after an enrolment stays bounded.
_IMPOSTOR_ROWS = 512


@dataclass(frozen=True)
class _State:
    """One immutable state of the gallery: a writer puts a new one in place, readers keep the one they took."""

    rows: Mapping[str, Array]
    scoring: Scoring

    @cached_property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.rows)

    @cached_property
    def matrix(self) -> Array:
        """All embeddings, (M, D), those of one label next to each other."""
        return np.concatenate(list(self.rows.values()))

    @cached_property
    def starts(self) -> Array:
        """The first row of each label in :attr:`matrix`."""
        counts = [len(rows) for rows in self.rows.values()]
        return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.intp)

    @cached_property
    def prototypes(self) -> Array:
        """The mean of each label's embeddings, normalised again, (L, D)."""
        return unit_rows(np.stack([rows.mean(axis=0, dtype=np.float64) for rows in self.rows.values()]))

    @cached_property
    def impostors(self) -> Impostors | None:
        if len(self.labels) < 2:
            return None
        total = len(self.matrix)
        picked = np.unique(np.linspace(0, total - 1, min(total, _IMPOSTOR_ROWS)).astype(np.intp))
        owner = np.searchsorted(self.starts, picked, side="right") - 1
        others = np.ones((len(picked), len(self.labels)), bool)
        others[np.arange(len(picked)), owner] = False
        scores = self.scores(self.matrix[picked])[others].astype(np.float64)
        return Impostors(float(scores.mean()), float(scores.std()), int(scores.size), "the enrolled labels")

    def scores(self, queries: Array) -> Array:
        """(N, L) cosine of each query with each label."""
        if self.scoring == "prototype":
            return np.asarray(queries @ self.prototypes.T)
        return np.asarray(np.maximum.reduceat(queries @ self.matrix.T, self.starts, axis=1))


class EmbeddedGallery:
    """Embeddings by label, in memory.

    Args:
        dimension: D, the length of an embedding.
        scoring: How a query scores against a label: ``nearest`` takes the label's closest embedding (a person looks
            different from each side), ``prototype`` the mean of its embeddings (few-shot classification).
    """

    def __init__(self, dimension: int, scoring: Scoring) -> None:
        self.dimension = dimension
        self.scoring = scoring
        self._state = _State({}, scoring)
        self._writing = threading.Lock()

    @property
    def labels(self) -> tuple[str, ...]:
        return self._state.labels

    def __len__(self) -> int:
        """The number of embeddings."""
        return sum(len(rows) for rows in self._state.rows.values())

    def add(self, label: str, embeddings: Array) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension or not len(embeddings):
            raise InputError(
                f"embeddings of shape {embeddings.shape}; this gallery takes (N, {self.dimension}), N >= 1"
            )
        # Also false for zeros, which have no direction, and for NaN, which compares false with everything.
        if not np.allclose(np.einsum("nd,nd->n", embeddings, embeddings), 1.0, atol=1e-3):
            raise InputError(
                f"an embedding for {label!r} is not a row of length one (all zero or not finite?): the model cannot "
                "use such an image; nothing was enrolled"
            )
        with self._writing:
            rows = dict(self._state.rows)
            known = rows.get(label)
            rows[label] = np.array(embeddings if known is None else np.concatenate([known, embeddings]), np.float32)
            self._state = _State(rows, self.scoring)

    def remove(self, label: str) -> None:
        with self._writing:
            rows = dict(self._state.rows)
            if label not in rows:
                raise UnknownLabelError(f"{label!r} is not enrolled; enrolled: {', '.join(rows) or 'nobody'}")
            del rows[label]
            self._state = _State(rows, self.scoring)

    def search(self, queries: Array, top_k: int) -> list[tuple[Match, ...]]:
        state = self._state
        if not state.labels:
            return [()] * len(queries)
        scores = state.scores(queries)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return [
            tuple(Match(state.labels[column], float(row[column])) for column in columns)
            for row, columns in zip(scores, best, strict=True)
        ]

    def rows_of(self, label: str) -> Array:
        """(N, D) float32: the embeddings of a label, which must not be written to; N is 0 when it is not enrolled."""
        return self._state.rows.get(label, np.empty((0, self.dimension), np.float32))

    @property
    def impostors(self) -> Impostors | None:
        """How enrolled embeddings score against every label but their own; None with fewer than two labels."""
        return self._state.impostors

    def contents(self) -> dict[str, Array]:
        """Label to (N, D) float32 unit rows, in order; the arrays must not be written to."""
        return dict(self._state.rows)

    def replace(self, rows: Mapping[str, Array]) -> None:
        """Forget all and take ``rows`` in one step."""
        fresh = EmbeddedGallery(self.dimension, self.scoring)
        for label, embeddings in rows.items():
            fresh.add(label, embeddings)
        with self._writing:
            self._state = fresh._state
