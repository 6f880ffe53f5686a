"""Labels by prototypes that are adapted to each other: a model's graph over the set of labels makes them.

What is enrolled are embeddings with their lengths; their mean is a label's raw prototype. The graph is run over all of
them whenever labels change, and a query is compared with what it gives, by cosine. So a frame costs one search, and
removing a label leaves nothing of it in the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from runtime.bundle.spec import MAX_LABELS
from runtime.common.arrays import Array, unit_rows
from runtime.errors import InputError
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.rows import RowsByLabel
from runtime.gallery.tracking import BestScores
from runtime.results import Match

Adapt: TypeAlias = Callable[[Array], Array]
"""From raw prototypes (L, D) float32 to adapted ones of the same shape."""

FOLDS = 8
"""The number of images of a label that are compared with it as if they were not enrolled."""


class AdaptedGallery(EmbeddedGallery):
    """A gallery whose labels are scored by adapted prototypes. Its rows are the unit rows of what is enrolled.

    A change whose prototypes cannot be adapted changes nothing.

    Args:
        dimension: D, the length of an embedding.
        adapt: Runs the graph.
    """

    def __init__(self, dimension: int, adapt: Adapt) -> None:
        super().__init__(dimension, "prototype")
        self._adapt = adapt
        self._changing = threading.RLock()
        self._lengths: dict[str, Array] = {}
        self._adapted = EmbeddedGallery(dimension, "nearest")  # one row for each label

    def add(self, label: str, embeddings: Array) -> None:
        """Add (N, D) float32 unit rows of images whose embeddings' lengths are not known: they get the mean length.

        Raises:
            InputError: As of :meth:`add_embeddings`, or nothing is enrolled whose length they could get.
        """
        with self._changing:
            if not self._lengths:
                raise InputError(
                    "unit rows alone cannot be the first that are enrolled: this model's prototypes have lengths; "
                    "enrol images first"
                )
            length = np.float32(np.mean([lengths.mean() for lengths in self._lengths.values()]))
            self.add_embeddings(label, np.asarray(embeddings, np.float32) * length)

    def add_embeddings(self, label: str, embeddings: Array) -> None:
        """Add (N, D) float32 embeddings, as the model makes them, to a label, making it if it is new.

        Raises:
            InputError: They are not (N, D) with N >= 1, one of them is zero or not finite, or there would be more than
                :data:`runtime.bundle.spec.MAX_LABELS` labels; nothing was enrolled.
            EngineError: The graph failed; nothing was enrolled.
        """
        with self._changing:
            self._check_shape(embeddings)
            rows = self.contents()
            self._take({**rows, label: np.concatenate([rows[label], embeddings]) if label in rows else embeddings})
            lengths = _lengths(embeddings)
            super().add(label, unit_rows(embeddings))
            self._lengths[label] = np.concatenate([self._lengths.get(label, lengths[:0]), lengths])

    def remove(self, label: str) -> None:
        """Forget a label and all its embeddings; the others are adapted anew without it."""
        with self._changing:
            rows = dict(self.contents())
            if label in rows:
                del rows[label]
                self._take(rows)
            super().remove(label)
            del self._lengths[label]

    def contents(self) -> RowsByLabel:
        """Label to (N, D) float32 embeddings with their lengths, in order: a copy of one state, in one array."""
        with self._changing:
            units = super().contents()
            if not self._lengths:
                return units
            lengths = np.concatenate([self._lengths[label] for label in units.labels])
            return RowsByLabel(units.labels, units.counts, units.matrix * lengths[:, None])

    def replace(self, rows: Mapping[str, Array]) -> None:
        """Replace all rows by ``rows``, embeddings with their lengths, in one step."""
        with self._changing:
            parts = dict(rows.items())
            for embeddings in parts.values():
                self._check_shape(embeddings)
            self._take(parts)
            super().replace({label: unit_rows(embeddings) for label, embeddings in parts.items()})
            self._lengths = {label: _lengths(embeddings) for label, embeddings in parts.items()}

    def search(self, queries: Array, top_k: int) -> list[tuple[Match, ...]]:
        return self._adapted.search(queries, top_k)

    def best_scores(self, probes: Array) -> BestScores:
        return self._adapted.best_scores(probes)

    def prototypes(self) -> tuple[RowsByLabel, Array]:
        """What :meth:`contents` gives and (L, D) float32 unit rows, the adapted prototype of each label."""
        with self._changing:
            return self.contents(), self._adapted.contents().matrix

    def genuine_scores(self) -> Array:
        """(S,) float32: cosines of images with their label's adapted prototype without them, of labels with several.

        The graph is run once for each of the first :data:`FOLDS` places of an image in its label, with all labels
        lacking that image at once.
        """
        rows = self.contents()
        scores: list[Array] = []
        for place in range(FOLDS):
            chosen = (rows.counts > 1) & (rows.counts > place)
            if not chosen.any():
                break
            means = [
                _mean(np.delete(embeddings, place, axis=0) if taken else embeddings)
                for taken, (_, embeddings) in zip(chosen, rows.items(), strict=True)
            ]
            adapted = unit_rows(self._adapt(np.stack(means)))[chosen]
            images = rows.matrix[(rows.ends - rows.counts)[chosen] + place]
            scores.append(np.einsum("nd,nd->n", unit_rows(images), adapted))
        return np.concatenate(scores) if scores else np.empty(0, np.float32)

    def _take(self, rows: Mapping[str, Array]) -> None:
        """Adapt the prototypes of these embeddings, and score by what comes of it."""
        if len(rows) > MAX_LABELS:
            raise InputError(f"{len(rows)} labels; allowed: {MAX_LABELS}, for they are adapted to each other")
        for label, embeddings in rows.items():
            lengths = _lengths(embeddings)
            if not (np.isfinite(lengths) & (lengths > 0)).all():
                raise InputError(
                    f"an embedding for {label!r} has no direction (all zero or not finite?): the model cannot use such "
                    "an image; nothing was enrolled"
                )
        adapted = unit_rows(self._adapt(np.stack([_mean(part) for part in rows.values()]))) if rows else None
        self._adapted.replace({} if adapted is None else {label: adapted[i : i + 1] for i, label in enumerate(rows)})


def _mean(embeddings: Array) -> Array:
    """The raw prototype: (N, D) -> (D,) float32."""
    return np.asarray(embeddings.mean(axis=0, dtype=np.float64), np.float32)


def _lengths(embeddings: Array) -> Array:
    """(N,) float32: the length of each row."""
    wide = np.asarray(embeddings, np.float64)
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", wide, wide)), np.float32)
