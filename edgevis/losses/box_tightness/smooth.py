"""The maximum of a bag and its smooth approximations, for all bags at once.

Paper: Wang, Xia, "Bounding Box Tightness Prior for Weakly Supervised Image Segmentation", MICCAI 2021, section 2.4,
equations (6) and (7).
Provenance: our own code. Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor

from edgevis.losses.box_tightness.checks import EPSILON, checked_number
from runtime.errors import InputError

SmoothMax = Literal["softmax", "quasimax", "max", "genmean"]
"""The values of a bag x become: ``softmax`` sum(x e^(alpha x)) / sum(e^(alpha x)), equation (6); ``quasimax``
(log sum(e^(alpha x)) - log n) / alpha, equation (7); ``max`` their maximum, whose gradient goes to its first place;
``genmean`` mean(x^alpha)^(1 / alpha), which is not in the paper: it is what the released code computes, with alpha 4.
"""

# e^64 times a million pixels is far below float32's largest number.
_LEAST_ALPHA, _MOST_ALPHA = 1e-3, 64.0


def checked_smooth_max(smooth_max: str, alpha: float) -> tuple[SmoothMax, float]:
    """The arguments of :func:`bag_values`; ``max`` has no alpha and takes any.

    Raises:
        InputError: There is no such approximation, or alpha is not from 0.001 to 64.
    """
    known = get_args(SmoothMax)
    if smooth_max not in known:
        raise InputError(f"smooth_max is {smooth_max!r}; allowed: {', '.join(known)}")
    if smooth_max == "max":
        return "max", 0.0
    return cast(SmoothMax, smooth_max), checked_number("alpha", alpha, low=_LEAST_ALPHA, high=_MOST_ALPHA)


def bag_values(values: Tensor, weights: Tensor, smooth_max: SmoothMax, alpha: float) -> Tensor:
    """One value for each bag.

    Args:
        values: (..., n) floating point, 0 to 1.
        weights: (..., n) of the same dtype, 1 for the values that are in the bag and 0 for the others. ``max`` takes
            any from 0 to 1 and multiplies.
        smooth_max, alpha: As :func:`checked_smooth_max` gives them.

    Returns:
        (...) floating point; 0 for a bag without values.
    """
    if smooth_max == "max":
        return (values * weights).max(dim=-1).values
    size = weights.sum(-1).clamp(min=1)
    if smooth_max == "genmean":
        # Relative to the largest value, so that no power of a small number becomes 0, whose root has no gradient.
        largest = (values.detach() * weights).amax(-1).clamp(min=EPSILON)
        mean = ((values / largest[..., None]).pow(alpha) * weights).sum(-1) / size
        return largest * torch.where(mean > 0, mean, 0).pow(1 / alpha)
    exponentials = (alpha * values).exp() * weights
    total = exponentials.sum(-1)
    if smooth_max == "softmax":
        return (values * exponentials).sum(-1) / total.clamp(min=1)
    return (total.clamp(min=1) / size).log() / alpha
