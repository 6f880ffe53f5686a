"""Segmentation from bounding boxes: generalised multiple instance learning with the tightness of the box as prior.

Paper: Wang, Xia, "Bounding Box Tightness Prior for Weakly Supervised Image Segmentation", MICCAI 2021, sections 2.3 and
2.4, equations (1) and (3) to (7).
Provenance: our own code. Where the paper is silent it follows the code that its authors released, and reproduces that
code's values (see ``tests/golden/README.md``); where the two differ, the paper is the default.
Licence: this file, as the rest of edgevis.

A box is tight: every line that crosses it from one side to the opposite one meets the object, and no pixel outside of
the boxes of a class is of that class. So crossing lines at several angles are positive bags, pixels outside are
negative ones, and a focal loss is taken over the bags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from edgevis.losses.box_tightness.bags import class_masks, positive_bags
from edgevis.losses.box_tightness.checks import EPSILON, checked_angles, checked_boxes, checked_number, checked_pred
from edgevis.losses.box_tightness.pairwise import pairwise_loss
from edgevis.losses.box_tightness.smooth import SmoothMax, checked_smooth_max
from runtime.errors import InputError

Definition = Literal["paper", "released"]


def box_tightness_loss(
    pred: Tensor,
    boxes: Tensor,
    angles: Sequence[float],
    smooth_max: SmoothMax,
    alpha: float,
    per_box: bool = True,
    *,
    beta: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """The improved unary loss of each class over the whole batch, equation (5).

    It is [sum over positive bags of -beta (1 - P)^gamma log P + sum over negative pixels of
    -(1 - beta) P^gamma log(1 - P)] / max(1, number of positive bags), where P is a bag's value. Predictions and bag
    values are kept between 1e-6 and 1 - 1e-6; beyond, their gradient is 0.

    With ``angles=(0,)`` the bags are the rows and columns of the box itself, without any resampling.

    Args:
        pred: (B, C, H, W) floating point, probabilities 0 to 1 (``torch.sigmoid`` of the logits), on any device. 16-bit
            types are computed in float32.
        boxes: (N, 6) integers: image, class, x1, y1, x2, y2 in pixels, both corners inside; N may be 0.
        angles: Degrees between the lines and the box's sides, above -90 and below 90. The paper's best are
            (-40, -20, 0, 20, 40) for prostates and (-60, -30, 0, 30, 60) for lesions.
        smooth_max: How a bag's value is made of its pixels': ``softmax``, ``quasimax`` or ``max``; ``genmean`` is the
            released code's.
        alpha: Sharpness of the smooth maximum, 4 to 8 in the paper, from 0.001 to 64; ``max`` has none and ignores it.
        per_box: Each box has its own mask, as the paper defines it. False is what the released code does: the mask and
            its height and width are those of all boxes of that class near the box, which loses lines.
        beta: Weight of the positive bags, 0 to 1.
        gamma: Focusing parameter, 0 or more.

    Returns:
        (C,) of the dtype of ``pred``.

    Raises:
        InputError: An argument is not as described.
    """
    pred = checked_pred(pred)
    boxes = checked_boxes(boxes, pred)
    smooth_max, alpha = checked_smooth_max(smooth_max, alpha)
    angles = checked_angles(angles)
    beta = checked_number("beta", beta, low=0, high=1)
    gamma = checked_number("gamma", gamma, low=0)
    values, classes = positive_bags(pred, boxes, angles, smooth_max, alpha, per_box=per_box)
    values = values.clamp(EPSILON, 1 - EPSILON)
    positive = -beta * (1 - values).pow(gamma) * values.log()
    outside = ~class_masks(boxes, pred.shape).to(pred.device)
    negative = (-(1 - beta) * pred.pow(gamma) * torch.log1p(-pred) * outside).sum((0, 2, 3))
    count = torch.bincount(classes, minlength=pred.shape[1]).clamp(min=1)
    return negative.index_add(0, classes, positive) / count


class BoxTightnessLoss(nn.Module):
    """The generalised MIL loss, equation (4): the sum over classes of unary loss and weighted pairwise loss.

    Args:
        angles: As of :func:`box_tightness_loss`.
        smooth_max: ``softmax``, ``quasimax`` or ``max``.
        alpha: Sharpness of the smooth maximum; ``max`` ignores it.
        beta: Weight of the positive bags, 0 to 1.
        gamma: Focusing parameter, 0 or more.
        pairwise_weight: lambda of equation (1), 0 or more.
        definition: ``paper``, or ``released`` to compare with the authors' code: boxes mix with their neighbours of
            the same class, and in place of either smooth maximum it takes the generalised mean with power 4.

    Raises:
        InputError: An argument is not as described.
    """

    def __init__(
        self,
        angles: Sequence[float],
        smooth_max: SmoothMax = "softmax",
        alpha: float = 4.0,
        beta: float = 0.25,
        gamma: float = 2.0,
        pairwise_weight: float = 10.0,
        *,
        definition: Definition = "paper",
    ) -> None:
        super().__init__()
        self.angles = checked_angles(angles)
        self.smooth_max, self.alpha = checked_smooth_max(smooth_max, alpha)
        self.beta = checked_number("beta", beta, low=0, high=1)
        self.gamma = checked_number("gamma", gamma, low=0)
        self.pairwise_weight = checked_number("pairwise_weight", pairwise_weight, low=0)
        if definition not in get_args(Definition):
            raise InputError(f"definition is {definition!r}; allowed: {', '.join(get_args(Definition))}")
        self.per_box = definition == "paper"
        if definition == "released" and self.smooth_max != "max":
            self.smooth_max, self.alpha = "genmean", 4.0

    def forward(self, pred: Tensor, boxes: Tensor) -> Tensor:
        """``pred`` and ``boxes`` as of :func:`box_tightness_loss` -> () of the dtype of ``pred``."""
        unary = box_tightness_loss(
            pred, boxes, self.angles, self.smooth_max, self.alpha, self.per_box, beta=self.beta, gamma=self.gamma
        )
        return (unary + self.pairwise_weight * pairwise_loss(pred, boxes)).sum()
