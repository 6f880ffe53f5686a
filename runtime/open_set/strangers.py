"""A threshold measured on strangers: the scores of images that show no enrolled label.

What is kept of the strangers are their rows, not only their scores: when labels are added or forgotten, each stranger's
best score is known for the labels of now, so nothing has to be assumed of how the best of n labels grows with n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from runtime.common.arrays import Array
from runtime.images.decode import Image

MIN_RATE, MAX_RATE = 1e-4, 0.5
MIN_STRANGERS = 20
MAX_STRANGERS = 2000
"""At most so many rows are kept; of more, every n-th."""

LIVE_S = 60.0
"""Seconds for which a live source is watched."""

V = TypeVar("V")

_BATCH = 32  # images in memory at once
_TAIL_SHARE = 0.15
_TAIL_ROWS = 8


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate with its 95 % interval, each 0..1."""

    value: float
    low: float
    high: float


def sampled_rows(
    views: Iterable[tuple[V, Image]], scored_rows: Callable[[Sequence[Image]], Array]
) -> tuple[list[V], Array]:
    """The rows of evenly spaced images, at most twice :data:`MAX_STRANGERS`.

    Args:
        views: Each something to know an image by, and the (H, W, 3) uint8 BGR image; only a batch is in memory at once.
        scored_rows: Makes (N, D) float32 unit rows of N images.

    Returns:
        What the S images are known by, and (S, D) float32; (0, 0) without images.
    """
    known: list[V] = []
    rows: list[Array] = []
    batch: list[Image] = []
    stride = 1
    for index, (view, image) in enumerate(views):
        if index % stride == 0:
            known.append(view)
            batch.append(image)
        if len(batch) >= _BATCH:
            rows += list(scored_rows(batch))
            batch = []
        if len(rows) >= 2 * MAX_STRANGERS:
            known, rows, stride = known[::2], rows[::2], 2 * stride
    if batch:
        rows += list(scored_rows(batch))
    return known, np.stack(rows) if rows else np.empty((0, 0), np.float32)


def threshold_at(scores: Array, rate: float, *, independent: float | None = None) -> float:
    """The score that a stranger reaches with probability ``rate``.

    Of n strangers and one more, each is as likely to be the k-th highest, so that one more reaches the k-th highest of
    the n with probability k / (n + 1), however scores are distributed (Vovk et al., 2005). Between two of them it is
    interpolated. Rates below 1 / (n + 1) lie beyond the highest: there an exponential tail, fitted to the highest 15 %,
    goes on.

    Args:
        scores: (N,) each image's best score, N >= 1.
        rate: 0..1, exclusive.
        independent: The number of independent images that they are worth, 1..N; None for N.
    """
    ordered = np.sort(np.asarray(scores, np.float64))[::-1]
    count = len(ordered)
    worth = count if independent is None else min(max(independent, 1.0), count)
    position = (rate * (worth + 1) - 1.0) * count / worth
    if position >= 0 or count == 1:
        return float(np.interp(position, np.arange(count), ordered))
    tail = min(max(_TAIL_ROWS, math.ceil(_TAIL_SHARE * count)), count - 1)
    start = ordered[tail]
    mean_excess = float((ordered[:tail] - start).mean())
    return float(max(ordered[0], start + mean_excess * math.log(tail / (rate * (worth + 1)))))


def effective_count(rows: Array, same: float) -> tuple[float, int]:
    """The effective number of independent images among (N, D) unit rows, and the number of distinct strangers.

    Images that follow each other in a video show the same stranger. Rows whose cosine is at least ``same`` are taken
    for one; the count is Kish's, ``N**2 / sum(n_i**2)``.
    """
    count = len(rows)
    if count == 0:
        return 0.0, 0
    owner = np.full(count, -1, np.int64)
    groups = 0
    for index in range(count):
        if owner[index] >= 0:
            continue
        near = (rows @ rows[index] >= same) & (owner < 0)
        near[index] = True
        owner[near] = groups
        groups += 1
    sizes = np.bincount(owner).astype(np.float64)
    return float(count**2 / (sizes**2).sum()), groups


def rate_interval(rate: float, count: float) -> Rate:
    """A rate measured on ``count`` independent images, with Wilson's 95 % interval."""
    if count <= 0:
        return Rate(rate, 0.0, 1.0)
    z = 1.959964
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return Rate(rate, max(0.0, centre - half), min(1.0, centre + half))
