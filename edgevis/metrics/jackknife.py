"""Confidence intervals of ratios of sums, such as an IoU over all episodes, and of the difference of two.

Source: Tukey, "Bias and confidence in not-quite large samples", 1958; Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 11. A unit's pseudo-value is n times the figure of all n units less n - 1 times that of all
but this one; where the figure is a mean, it is the unit's own value. Pseudo-values are treated as independent, so the
interval of the figure is that of their mean. Two models measured on the same units have the interval of the mean of
their pseudo-values' differences: what is hard for both then does not widen it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgevis.metrics.interval import half_width
from runtime.errors import InputError

__all__ = ["difference", "grouped_mean", "mean_of_ratios"]

Pseudo = tuple[float, NDArray[np.float64]]
"""A figure, and the pseudo-value of each unit, (n,)."""


def mean_of_ratios(numerators: ArrayLike, denominators: ArrayLike) -> Pseudo:
    """The mean over columns of sum(numerators) / sum(denominators).

    Args:
        numerators, denominators: (n, k) numbers, n >= 1 units. A column whose denominators are all 0, such as a class
            that no episode drew, is no part of the mean.

    Returns:
        The figure and its pseudo-values. Without a unit that alone has a column, the mean is over the others; without
        the only one that has any, it is what it was.

    Raises:
        InputError: Shapes differ, there is no unit, or every denominator is 0.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if above.ndim != 2 or above.shape != below.shape or 0 in above.shape:
        raise InputError(f"numerators {above.shape} and denominators {below.shape}; allowed: (n, k) both, n, k >= 1")

    def ratio(top: NDArray[np.float64], bottom: NDArray[np.float64], otherwise: float) -> NDArray[np.float64]:
        there = bottom > 0
        columns = there.sum(-1)
        sums = np.divide(top, bottom, out=np.zeros_like(top), where=there).sum(-1)
        means: NDArray[np.float64] = np.where(columns > 0, sums / np.maximum(columns, 1), otherwise)
        return means

    if not below.any():
        raise InputError(f"all {below.shape} denominators are 0; allowed: one or more above 0")
    count = len(above)
    whole = float(ratio(above.sum(0), below.sum(0), 0.0))
    if count == 1:
        return whole, np.array([whole])
    without = ratio(above.sum(0) - above, below.sum(0) - below, whole)
    return whole, count * whole - (count - 1) * without


def grouped_mean(values: ArrayLike, groups: Sequence[Hashable]) -> Pseudo:
    """The mean of values whose units are groups, such as queries of the same person, which are alike.

    Args:
        values: (V,) numbers, V >= 1.
        groups: (V,) the group of each; the units are the groups in sorted order.

    Raises:
        InputError: As for :func:`mean_of_ratios`, or the lengths differ.
    """
    flat = np.asarray(values, np.float64)
    if flat.shape != (len(groups),):
        raise InputError(f"{flat.shape} values in {len(groups)} groups; allowed: as many")
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(place, weights=flat), np.bincount(place)
    return mean_of_ratios(sums[:, None], counts[:, None])


def difference(one: ArrayLike, other: ArrayLike) -> tuple[float, float]:
    """The first of two figures on the same units minus the second, and the half width of its 95 % interval.

    Args:
        one, other: (n,) pseudo-values, n >= 2, of the same units in the same order.

    Raises:
        InputError: They are not as many.
    """
    first, second = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise InputError(f"{first.shape} and {second.shape} pseudo-values; allowed: (n,) both, n >= 2")
    return float((first - second).mean()), half_width(first - second)
