"""The MIL baseline that the box-tightness loss is compared with: rows and columns as bags, cross-entropy over bags.

Paper: Wang, Xia, "Bounding Box Tightness Prior for Weakly Supervised Image Segmentation", MICCAI 2021, section 2.2,
equations (1) to (4).
Provenance: our own code. Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from edgevis.losses.box_tightness.bags import class_masks, positive_bags
from edgevis.losses.box_tightness.checks import EPSILON, checked_boxes, checked_number, checked_pred
from edgevis.losses.box_tightness.pairwise import pairwise_loss
from edgevis.losses.box_tightness.smooth import SmoothMax, bag_values, checked_smooth_max
from runtime.errors import InputError

Negatives = Literal["all", "missing"]


def mil_baseline_loss(
    pred: Tensor, boxes: Tensor, smooth_max: SmoothMax = "max", alpha: float = 4.0, *, negatives: Negatives = "all"
) -> Tensor:
    """The unary loss of the MIL baseline for each class over the whole batch, equation (2).

    Positive bags are the rows and columns of each box; negative ones are rows and columns of the images. The loss is
    the mean over all bags of the binary cross-entropy of their values.

    Args:
        pred, boxes, smooth_max, alpha: As of :func:`edgevis.losses.box_tightness_loss`.
        negatives: ``all``: every row and column of every image, without its pixels in boxes of the class, as the
            released code has it (a line that is all in boxes counts with a value of 0); ``missing``: only those that
            miss all boxes of the class, as the paper says.

    Returns:
        (C,) of the dtype of ``pred``.

    Raises:
        InputError: An argument is not as described.
    """
    pred = checked_pred(pred)
    boxes = checked_boxes(boxes, pred)
    smooth_max, alpha = checked_smooth_max(smooth_max, alpha)
    if negatives not in get_args(Negatives):
        raise InputError(f"negatives is {negatives!r}; allowed: {', '.join(get_args(Negatives))}")
    positive, of_class = positive_bags(pred, boxes, (0.0,), smooth_max, alpha, per_box=True)
    outside = ~class_masks(boxes, pred.shape).to(pred.device)
    weights = outside.to(pred.dtype)
    # The rows, then the columns: (B, C, H + W).
    negative = torch.cat(
        [bag_values(x, w, smooth_max, alpha) for x, w in ((pred, weights), (pred.mT, weights.mT))], dim=2
    )
    weight = torch.ones_like(negative)
    if negatives == "missing":
        weight = weight * torch.cat([outside.all(3), outside.all(2)], dim=2)
    losses = -torch.log1p(-negative.clamp(EPSILON, 1 - EPSILON)) * weight
    total = losses.sum((0, 2)).index_add(0, of_class, -positive.clamp(EPSILON, 1 - EPSILON).log())
    return total / (weight.sum((0, 2)) + torch.bincount(of_class, minlength=pred.shape[1]))


class MILBaselineLoss(nn.Module):
    """The MIL baseline with the pairwise term, equation (4).

    Args:
        smooth_max, alpha, negatives: As of :func:`mil_baseline_loss`; the paper's baseline takes the maximum, its
            table 2 also the smooth ones.
        pairwise_weight: lambda of equation (1), 0 or more.

    Raises:
        InputError: An argument is not as described.
    """

    def __init__(
        self,
        smooth_max: SmoothMax = "max",
        alpha: float = 4.0,
        pairwise_weight: float = 10.0,
        *,
        negatives: Negatives = "all",
    ) -> None:
        super().__init__()
        self.smooth_max, self.alpha = checked_smooth_max(smooth_max, alpha)
        self.pairwise_weight = checked_number("pairwise_weight", pairwise_weight, low=0)
        if negatives not in get_args(Negatives):
            raise InputError(f"negatives is {negatives!r}; allowed: {', '.join(get_args(Negatives))}")
        self.negatives = negatives

    def forward(self, pred: Tensor, boxes: Tensor) -> Tensor:
        """``pred`` and ``boxes`` as of :func:`edgevis.losses.box_tightness_loss` -> () of the dtype of ``pred``."""
        unary = mil_baseline_loss(pred, boxes, self.smooth_max, self.alpha, negatives=self.negatives)
        return (unary + self.pairwise_weight * pairwise_loss(pred, boxes)).sum()
