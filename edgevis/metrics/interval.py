"""The mean accuracy of few-shot episodes and its confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.errors import InputError

__all__ = ["EpisodeAccuracy", "episode_accuracy", "half_width"]

_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class EpisodeAccuracy:
    """A mean over episodes.

    Attributes:
        mean: From 0 to 1.
        half_width95: The 95 % interval of the mean is ``mean`` ± this.
        episodes: How many were averaged.
    """

    mean: float
    half_width95: float
    episodes: int


def episode_accuracy(accuracies: ArrayLike) -> EpisodeAccuracy:
    """Mean and 95 % interval: the standard error (n - 1) times Student's t for n - 1 degrees of freedom.

    For the thousands of episodes of papers that factor is 1.96; for few it is larger, as it should be.

    Args:
        accuracies: (E,) numbers from 0 to 1, one for each episode, E >= 2.

    Raises:
        InputError: Another shape, fewer than two episodes, NaN, or a number outside of 0 to 1.
    """
    values = np.asarray(accuracies)
    if values.ndim != 1 or len(values) < 2 or values.dtype.kind not in "biuf":
        raise InputError(
            f"accuracies have shape {values.shape} and dtype {values.dtype}; allowed: (E,) numbers, E >= 2"
        )
    wide = values.astype(np.float64)
    if not ((wide >= 0) & (wide <= 1)).all():  # of NaN, both are false
        raise InputError("accuracies hold NaN, or a number outside of 0 to 1; percent are to be divided by 100")
    return EpisodeAccuracy(float(wide.mean()), half_width(wide), len(wide))


def half_width(values: NDArray[np.float64]) -> float:
    """Half width of the 95 % interval of the mean of n >= 2 numbers, (n,): Student's t times the standard error."""
    return _student_t(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))


def _student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, in standard errors (by bisection: SciPy is no dependency)."""
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _share_within(middle, freedom) < _LEVEL else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _share_within(angle: float, freedom: int) -> float:
    """The share of Student's t within ± sqrt(freedom) tan(angle): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    steps = np.arange(1, freedom // 2)
    ratios = 2 * steps / (2 * steps + 1) if odd else (2 * steps - 1) / (2 * steps)
    total = 1 + float(np.cumprod(ratios * math.cos(angle) ** 2).sum())
    if not odd:
        return math.sin(angle) * total
    if freedom == 1:
        return 2 * angle / math.pi
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
