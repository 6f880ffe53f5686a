"""The score space of a model, from a background: images that nobody enrols."""

from __future__ import annotations

import numpy as np

from runtime.common.arrays import Array, unit_rows
from runtime.open_set.space import ScoreSpace

COHORT = 128
"""Centroids; measured, 64 to 256 differ by less than the interval, and a query is compared with each."""

_ITERATIONS = 12


def whitening_of(rows: Array, labels: Array, shrink: float) -> tuple[Array, Array]:
    """The mean of (N, D) unit rows, and the inverse square root of their covariance within labels (WCCN).

    Args:
        rows: Embeddings.
        labels: (N,) whose views they are.
        shrink: 0..1: how far the covariance is drawn to the unit matrix of its own size, without which directions that
            hardly vary here would be blown up.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    _, owners = np.unique(labels, return_inverse=True)
    sums = np.zeros((owners.max() + 1, rows.shape[1]))
    np.add.at(sums, owners, rows)
    within = rows - (sums / np.bincount(owners)[:, None])[owners]
    covariance = within.T @ within / len(rows)
    size = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh((1 - shrink) * covariance + shrink * size * np.eye(len(covariance)))
    whitening = (vectors * np.sqrt(size / values)) @ vectors.T
    return mean.astype(np.float32), whitening.astype(np.float32)


def space_of(
    rows: Array, labels: Array, *, shrink: float | None, neighbours: int, strength: float, cohort: int = COHORT
) -> ScoreSpace:
    """The score space.

    Args:
        rows: (N, D) float32 unit rows of the background.
        labels: (N,) whose they are.
        shrink: See :func:`whitening_of`; None centres only.
        neighbours, strength: See :class:`runtime.open_set.space.ScoreSpace`.
        cohort: The number of centroids.
    """
    if shrink is None:
        mean, whitening = rows.mean(axis=0, dtype=np.float64).astype(np.float32), None
    else:
        mean, whitening = whitening_of(rows, labels, shrink)
        # Rounded as in the file, so that the measurement applies to the deployed values.
        whitening = whitening.astype(np.float16).astype(np.float32)
    bare = ScoreSpace(mean, whitening, np.zeros((1, len(mean)), np.float32), 1, 0.0, 0.0)
    projected = bare.project(rows)
    centroids = unit_rows(_centroids(projected, min(cohort, len(projected))).astype(np.float16))
    nearest = np.sort(projected @ centroids.T, axis=1)[:, -neighbours:]
    return ScoreSpace(mean, whitening, centroids, neighbours, strength, float(nearest.mean()))


def _centroids(rows: Array, count: int) -> Array:
    """Spherical k-means: (count, D) unit rows."""
    random = np.random.default_rng(0)
    centroids = rows[random.permutation(len(rows))[:count]]
    for _ in range(_ITERATIONS):
        owners = (rows @ centroids.T).argmax(axis=1)
        sums = np.zeros((count, rows.shape[1]))
        np.add.at(sums, owners, rows)
        empty = np.bincount(owners, minlength=count) == 0
        sums[empty] = rows[random.permutation(len(rows))[: int(empty.sum())]]
        centroids = unit_rows(sums)
    return centroids
