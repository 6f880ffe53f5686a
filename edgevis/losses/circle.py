"""Circle loss: similarities of one identity are raised and those of others lowered, the farther off the harder.

Paper: Sun, Cheng, Zhang, Zhang, Zheng, Wang, Wei, "Circle Loss: A Unified Perspective of Pair Similarity Optimization",
CVPR 2020, equations 4 to 6. Our own code.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from edgevis.losses._checks import check_labels, check_rows
from runtime.errors import InputError

Pairs = Literal["per-anchor", "all"]


def circle_loss(
    features: Tensor, labels: Tensor, *, margin: float = 0.25, gamma: float = 128.0, pairs: Pairs = "per-anchor"
) -> Tensor:
    """The loss by pairs of a batch.

    Args:
        features: (B, d) floating point; they are made unit length, in float32 or better.
        labels: (B,) integers: the identities, at least two of them, and at least one with two rows.
        margin: m, 0 to 1: similarities of one identity are to be 1 - m or more, those of others m or less.
        gamma: The scale.
        pairs: ``per-anchor`` compares each row with all others, and takes the mean over rows: its size does not depend
            on the batch's. ``all`` compares all pairs of the batch with each other, as equation 6 does with one set.

    Returns:
        A scalar. A row without another of its identity counts 0.

    Raises:
        InputError: Shapes do not fit together, a value is not allowed, no identity has two rows or all rows have one,
            NaN.
    """
    check_rows("features", features)
    check_labels(labels, len(features))
    _check(margin, gamma)
    if pairs not in get_args(Pairs):
        raise InputError(f"pairs is {pairs!r}; allowed: {', '.join(get_args(Pairs))}")
    similarity = _units(features)
    similarity = similarity @ similarity.T
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive, negative = same & other, ~same
    if not torch.compiler.is_compiling() and not (bool(positive.any()) and bool(negative.any())):
        raise InputError(
            "the batch has no two rows of one identity, or all rows are of one; allowed: P identities with K rows each"
        )
    raised = -gamma * _weighted(1 + margin - similarity, similarity - (1 - margin))
    lowered = gamma * _weighted(similarity + margin, similarity - margin)
    if pairs == "all":
        above = torch.ones_like(same).triu(1)
        return F.softplus(raised[positive & above].logsumexp(0) + lowered[negative & above].logsumexp(0))
    counts = positive.any(1) & negative.any(1)  # of the others the gradient would be NaN
    rows = _logsumexp(raised, positive)[counts] + _logsumexp(lowered, negative)[counts]
    return F.softplus(rows).sum() / len(labels)


def circle_logits(
    features: Tensor, class_weight: Tensor, labels: Tensor, *, margin: float = 0.25, gamma: float = 128.0
) -> Tensor:
    """Logits whose cross-entropy is the loss by classes: each class has one weight vector instead of pictures.

    Args:
        features: (B, d) floating point; they are made unit length, in float32 or better.
        class_weight: (classes, d), likewise.
        labels: (B,) integers, each below ``classes``.
        margin, gamma: As of :func:`circle_loss`.

    Returns:
        (B, classes).

    Raises:
        InputError: Shapes do not fit together, a value is not allowed, NaN.
    """
    check_rows("features", features)
    check_rows("class_weight", class_weight)
    if features.shape[1] != class_weight.shape[1]:
        raise InputError(f"features have {features.shape[1]} columns, class_weight {class_weight.shape[1]}")
    check_labels(labels, len(features), len(class_weight))
    _check(margin, gamma)
    similarity = _units(features) @ _units(class_weight).T
    own = F.one_hot(labels.long(), len(class_weight)).bool()
    raised = _weighted(1 + margin - similarity, similarity - (1 - margin))
    lowered = _weighted(similarity + margin, similarity - margin)
    return gamma * torch.where(own, raised, lowered)


def _weighted(distance: Tensor, excess: Tensor) -> Tensor:
    """The weight, how far a similarity is from its optimum, has no gradient: section 3.2."""
    return distance.detach().clamp(min=0) * excess


def _logsumexp(values: Tensor, chosen: Tensor) -> Tensor:
    return values.masked_fill(~chosen, -math.inf).logsumexp(1)


def _units(rows: Tensor) -> Tensor:
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    return F.normalize(wide, dim=1)


def _check(margin: float, gamma: float) -> None:
    if not 0 <= margin <= 1:
        raise InputError(f"margin is {margin}; allowed: 0 to 1")
    if not (math.isfinite(gamma) and gamma > 0):
        raise InputError(f"gamma is {gamma}; allowed: a finite number above 0")
