"""Batch nuclear-norm maximisation: answers on unlabelled pictures become sure, and stay of many classes.

Paper: Cui, Wang, Zhuo, Li, Huang, Tian, "Towards Discriminability and Diversity: Batch Nuclear-norm Maximization under
Label Insufficient Situations", CVPR 2020. Our own code.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from edgevis.losses._checks import check_rows
from runtime.errors import InputError

Reduction = Literal["batch", "mean", "sum"]
Norm = Literal["nuclear", "fast", "frobenius"]


def batch_nuclear_norm(logits: Tensor, *, reduction: Reduction = "batch", norm: Norm = "nuclear") -> Tensor:
    """Minus a norm of the class probabilities of a batch, to be minimised beside the loss of labelled pictures.

    Args:
        logits: (B, C) floating point, of unlabelled pictures; more of them than classes occur. They are computed with
            in float32 or better.
        reduction: ``batch`` divides the sum of singular values by B, as the paper's equation 9; ``mean`` by min(B, C),
            as the authors' training does; ``sum`` divides by nothing.
        norm: ``nuclear`` is the paper's; ``fast`` sums the min(B, C) largest norms of columns instead of singular
            values, without a decomposition; ``frobenius`` is the root of the mean (``sum``: of the sum) of the squared
            singular values, which ``batch`` does not go with.

    Returns:
        A scalar. With ``nuclear`` and ``sum`` it is from -sqrt(B min(B, C)), one-hot rows of balanced classes, to
        -sqrt(B / C), all rows uniform.

    Raises:
        InputError: A shape or a name is not allowed, NaN.
    """
    check_rows("logits", logits)
    for name, value, allowed in (("reduction", reduction, Reduction), ("norm", norm, Norm)):
        if value not in get_args(allowed):
            raise InputError(f"{name} is {value!r}; allowed: {', '.join(get_args(allowed))}")
    if norm == "frobenius" and reduction == "batch":
        raise InputError("norm is 'frobenius' with reduction 'batch'; allowed: mean, sum")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    rows, classes = logits.shape
    probabilities = logits.softmax(1)
    values = min(rows, classes)
    if norm == "frobenius":
        total = probabilities.square().sum()
        return -(total / values if reduction == "mean" else total).sqrt()
    if norm == "fast":
        sizes = probabilities.square().sum(0).sqrt().topk(values).values
    else:
        sizes = torch.linalg.svdvals(probabilities)
    return -sizes.sum() / {"batch": rows, "mean": values, "sum": 1}[reduction]


class BatchNuclearNormLoss(nn.Module):
    """:func:`batch_nuclear_norm` of several classifiers' logits, the mean over them, times a weight.

    Args:
        weight: λ of the paper's equation 10, 0 or more.
        reduction, norm: See :func:`batch_nuclear_norm`.
    """

    def __init__(self, *, weight: float = 1.0, reduction: Reduction = "batch", norm: Norm = "nuclear") -> None:
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise InputError(f"weight is {weight}; allowed: a finite number, 0 or more")
        self.weight = weight
        self.reduction: Reduction = reduction
        self.norm: Norm = norm

    def forward(self, *logits: Tensor) -> Tensor:
        """A scalar, of logits (B, C_i)."""
        terms = [batch_nuclear_norm(x, reduction=self.reduction, norm=self.norm) for x in logits]
        return self.weight * torch.stack(terms).mean()
