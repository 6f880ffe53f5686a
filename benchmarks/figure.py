"""A measured figure with its 95 % interval, and how tables show it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from edgevis.metrics.interval import half_width
from edgevis.metrics.jackknife import difference


class Figure(NamedTuple):
    """A figure whose 95 % interval is ``value`` ± ``half_width95``; in JSON a list of the two."""

    value: float
    half_width95: float

    @classmethod
    def of(cls, value: float, samples: ArrayLike) -> Figure:
        """The figure of these (pseudo-)values, (n,); the half width of a single one is NaN."""
        values = np.asarray(samples, np.float64)
        return cls(value, half_width(values) if len(values) > 1 else float("nan"))

    @classmethod
    def mean_of(cls, samples: ArrayLike) -> Figure:
        """The mean of (n,) numbers."""
        return cls.of(float(np.asarray(samples, np.float64).mean()), samples)

    @classmethod
    def difference(cls, one: ArrayLike, other: ArrayLike) -> Figure:
        """The first less the second; see :func:`edgevis.metrics.difference`."""
        return cls(*difference(one, other))


def figure_text(figure: Figure | None, *, sign: str = "", digits: int = 3) -> str:
    """A figure as a table shows it; empty for None. ``sign="+"``: a difference."""
    if figure is None:
        return ""
    return f"{figure.value:{sign}.{digits}f} ± {figure.half_width95:.{digits}f}"
