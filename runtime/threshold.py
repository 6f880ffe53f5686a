"""The open-set threshold: fitted to a false-accept rate, not guessed.

What a stranger scores against a label is modelled as a normal distribution. Its mean and deviation are those of two
sources taken together: the impostor scores that the build measured on images of different labels, and the scores of
the enrolled embeddings against every label but their own. The more is enrolled, the less the build's numbers weigh.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from runtime.errors import SchemaError
from runtime.jsondata import from_json, shown

# The build's impostor scores count as this many pairs, however many it measured: they are of other images than the
# ones this camera sees.
_PRIOR_PAIRS = 20

_FALSE_ACCEPT_RATE = 0.01


@dataclass(frozen=True, slots=True)
class Impostors:
    """Cosine scores between images of different labels.

    Attributes:
        mean, std: Of the scores.
        pairs: How many there were.
        source: What images they were measured on.
    """

    mean: float
    std: float
    pairs: int
    source: str = ""


def impostors_of(postprocess: Mapping[str, Any]) -> Impostors | None:
    """The build's impostor scores; None when it had images of fewer than two labels."""
    data = postprocess.get("impostor")
    if data is None:
        return None
    known = from_json(Impostors, data, "postprocess.impostor")
    # A cosine in float32 may exceed one by its rounding.
    if not (abs(known.mean) <= 1.001 and 0 <= known.std <= 1.001 and known.pairs >= 0):
        raise SchemaError(f"postprocess.impostor is {known}; allowed: mean -1..1, std 0..1, pairs >= 0")
    return known


def false_accept_rate_of(postprocess: Mapping[str, Any]) -> float:
    """The share of strangers that the threshold may let through; the model's own, or 1 %."""
    rate = postprocess.get("false_accept_rate", _FALSE_ACCEPT_RATE)
    if not isinstance(rate, float) or not 0 < rate < 1:
        raise SchemaError(f"postprocess.false_accept_rate is {shown(rate)}; allowed: 0..1, exclusive")
    return rate


def fit_threshold(
    enrolled: Impostors | None, prior: Impostors | None, *, labels: int, false_accept_rate: float
) -> float | None:
    """The score that a stranger reaches against any label with the probability ``false_accept_rate``.

    Args:
        enrolled: Impostor scores among what is enrolled; None with fewer than two labels.
        prior: The build's impostor scores.
        labels: How many labels are enrolled: a stranger has that many chances.
        false_accept_rate: 0..1, exclusive.

    Returns:
        The threshold, or None when nothing is known of strangers.
    """
    weighted = [
        (weight, known.mean, known.std**2)
        for known, weight in (
            (prior, min(prior.pairs, _PRIOR_PAIRS) if prior else 0),
            (enrolled, enrolled.pairs if enrolled else 0),
        )
        if known is not None and weight > 0
    ]
    if not weighted:
        return None
    total = sum(weight for weight, _, _ in weighted)
    mean = sum(weight * value for weight, value, _ in weighted) / total
    variance = sum(weight * (spread + (value - mean) ** 2) for weight, value, spread in weighted) / total
    # 1 - (1 - rate) ** (1 / labels), without the loss of a rate that vanishes beside one.
    per_label = max(-math.expm1(math.log1p(-false_accept_rate) / max(labels, 1)), sys.float_info.min)
    return mean - NormalDist().inv_cdf(per_label) * math.sqrt(variance)
