"""A threshold estimated without strangers, from the enrolment and the statistics of the weights.

Nothing that never saw a stranger of this scene can promise a rate. What can be known is how the threshold that would
have been right depended on the enrolment, over many enrolments of other persons or classes whose strangers were known:
weights bring that as a linear model per rate, fitted when they were made (:mod:`edgevis.open_set`), together with what
the rates came to be on persons and classes that were left out of the fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from runtime.errors import SchemaError
from runtime.gallery.state import Scoring
from runtime.open_set.enrolled import FEATURES, Features
from runtime.open_set.strangers import Rate

_MAX_ROWS = 64


@dataclass(frozen=True, slots=True)
class ThresholdModel:
    """A linear model of the threshold for each rate, in features of an enrolment.

    Attributes:
        features: Names of :data:`runtime.open_set.enrolled.FEATURES`, in the order of the coefficients.
        coefficients: For each rate a constant, then one number for each feature.
        low, high: The range of each feature over the enrolments that were fitted; a feature outside is taken as the
            nearer end, for nothing is known of what lies beyond.
    """

    features: tuple[str, ...]
    coefficients: tuple[tuple[float, ...], ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        size = len(self.features)
        sound = (
            all(name in FEATURES for name in self.features)
            and len(self.low) == len(self.high) == size
            and all(len(row) == size + 1 for row in self.coefficients)
            and len(self.coefficients) <= _MAX_ROWS
        )
        if not sound:
            raise SchemaError(f"open_set: a threshold model of {list(self.features)} has numbers that do not fit them")


@dataclass(frozen=True, slots=True)
class HeldOutRates:
    """The rates on enrolments that were held out of the fit.

    Attributes:
        labels, images: The number of enrolled labels, and of images of each.
        rate: The FPIR that was asked.
        fpir, fpir_low, fpir_high: The reached FPIR: the mean over the enrolments, and the range of 95 % of them.
        tpir, tpir_low, tpir_high: The TPIR in the same form.
    """

    labels: int
    images: int
    rate: float
    fpir: float
    fpir_low: float
    fpir_high: float
    tpir: float
    tpir_low: float
    tpir_high: float


@dataclass(frozen=True, slots=True)
class OpenSetStatistics:
    """The open-set statistics of a model's weights.

    Attributes:
        scoring: The score of a label: ``nearest``, ``prototype`` or ``blend``.
        rates: The rates that the threshold models are for, ascending.
        models: From the one that needs most of an enrolment to the one that needs least.
        measured: See :class:`HeldOutRates`.
        same: The cosine from which two images are taken for one object's, for counting strangers.
        source: On what images this was measured.
    """

    scoring: Scoring
    rates: tuple[float, ...]
    models: tuple[ThresholdModel, ...]
    measured: tuple[HeldOutRates, ...]
    same: float
    source: str

    def __post_init__(self) -> None:
        sound = (
            1 <= len(self.rates) <= _MAX_ROWS
            and all(0 < rate < 1 for rate in self.rates)
            and list(self.rates) == sorted(set(self.rates))
            and all(len(model.coefficients) == len(self.rates) for model in self.models)
            and len(self.models) <= _MAX_ROWS
            and all(0 < item.rate < 1 and item.labels > 0 for item in self.measured)
        )
        if not sound:
            raise SchemaError("open_set: scoring, rates and threshold models do not fit together")

    def threshold(self, features: Features, rate: float) -> float | None:
        """The threshold for a rate, -1..1; None when every model needs a feature that the enrolment lacks."""
        for model in self.models:
            values = [features.value(name) for name in model.features]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                continue
            clipped = np.clip(known, model.low, model.high) if known else np.empty(0)
            table = np.array(model.coefficients)
            # A higher rate never has the higher threshold, whatever the fits say.
            thresholds = np.minimum.accumulate(table[:, 0] + table[:, 1:] @ clipped)
            at = np.interp(math.log(rate), np.log(self.rates), thresholds)
            return float(np.clip(at, -1.0, 1.0))
        return None

    def expected(self, labels: int, images: float, rate: float) -> tuple[Rate, Rate] | None:
        """The expected FPIR and TPIR, from the measured enrolments that are most like this one."""
        if not self.measured:
            return None

        def distance(item: HeldOutRates) -> tuple[float, float]:
            size = abs(math.log(item.labels / max(labels, 1))) + abs(math.log(item.images / max(images, 1.0)))
            return abs(math.log(item.rate / rate)), size

        best = min(self.measured, key=distance)
        share = rate / best.rate
        fpir = Rate(*(min(1.0, value * share) for value in (best.fpir, best.fpir_low, best.fpir_high)))
        return fpir, Rate(best.tpir, best.tpir_low, best.tpir_high)
