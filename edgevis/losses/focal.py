"""The focal and the Huber loss of EfficientDet.

Papers: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, equation (5); Tan, Pang,
Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020. The paper prints alpha 0.25 and gamma 1.5;
Huber's delta 0.1, the weight 50 of boxes and the mask of zero targets are those of its code.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.layers.anchors import ANCHORS_PER_CELL, anchor_boxes, anchors_per_level, encode_anchors
from edgevis.losses._boxes import targets_by_image
from edgevis.losses._checks import check_values
from edgevis.losses.anchor_matching import BACKGROUND, IGNORED, ignore_regions, match_atss, match_largest_iou
from runtime.errors import InputError

Assignment = Literal["iou", "atss"]


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 1.5, smoothing: float = 0.0
) -> Tensor:
    """alpha_t (1 - p_t)^gamma times the binary cross-entropy, of each element.

    Args:
        logits: Floating point, any shape.
        targets: The same shape, 0..1.
        alpha: Weight of positive targets; negative ones have 1 - alpha.
        gamma: How much well classified elements are weighed down.
        smoothing: Label smoothing of the cross-entropy; the weights are those of the targets as they are.
    """
    probability = logits.sigmoid()
    of_target = probability * targets + (1 - probability) * (1 - targets)
    weight = (alpha * targets + (1 - alpha) * (1 - targets)) * (1 - of_target) ** gamma
    smoothed = targets * (1 - smoothing) + 0.5 * smoothing
    return weight * functional.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")


class EfficientDetLoss(nn.Module):
    """Focal loss of the classes and Huber loss of the boxes, over the number of matched anchors of the batch plus one.

    A box's ``weight`` below 1 is the probability that its anchors learn as class target, and weights their box terms.

    Args:
        assignment: ``iou`` is the largest overlap, the paper's; ``atss`` chooses anchors by their statistics.
        alpha, gamma, smoothing: See :func:`sigmoid_focal_loss`.
        delta: Where the Huber loss turns linear.
        box_weight: Of the boxes' term.
    """

    def __init__(
        self,
        *,
        assignment: Assignment = "iou",
        alpha: float = 0.25,
        gamma: float = 1.5,
        smoothing: float = 0.0,
        delta: float = 0.1,
        box_weight: float = 50.0,
    ) -> None:
        super().__init__()
        self.assignment = assignment
        self.alpha, self.gamma, self.smoothing = alpha, gamma, smoothing
        self.delta, self.box_weight = delta, box_weight

    def forward(self, rows: Tensor, targets: Tensor, *, size: tuple[int, int]) -> dict[str, Tensor]:
        """The terms by name.

        Args:
            rows: (B, A, 4 + C) float: raw outputs for the anchors of :func:`edgevis.layers.anchors.anchor_boxes`: box
                code (ty, tx, th, tw), logits of the classes.
            targets: (M, 8) float32, see :data:`edgevis.losses._boxes.COLUMNS`.
            size: Height and width of the input in pixels.

        Raises:
            InputError: Shapes do not fit, outputs are not finite, or targets are not as described.
        """
        anchors = anchor_boxes(size).to(rows.device)
        if rows.ndim != 3 or rows.shape[1] != len(anchors) or rows.shape[2] < 5:
            raise InputError(
                f"rows have shape {tuple(rows.shape)}; allowed for an input of {size}: (B, {len(anchors)}, 4 + classes)"
            )
        check_values("rows", rows)
        code, logits = rows[..., :4], rows[..., 4:]
        learned, focal, huber = rows.new_ones(()), rows.new_zeros(()), rows.new_zeros(())
        for number, image in enumerate(targets_by_image(targets, len(rows), logits.shape[2])):
            if self.assignment == "atss":
                matched = match_atss(anchors, image.boxes, anchors_per_level(size), per_place=ANCHORS_PER_CELL)
            else:
                matched = match_largest_iou(anchors, image.boxes)
            matched = ignore_regions(matched, anchors, image.ignored)
            places = (matched > BACKGROUND).nonzero().squeeze(1)
            objects = matched[places]
            right = torch.zeros_like(logits[number])
            right[places, image.classes[objects]] = image.weights[objects].to(right.dtype)
            counts = (matched != IGNORED).to(rows.dtype)[:, None]
            terms = sigmoid_focal_loss(
                logits[number], right, alpha=self.alpha, gamma=self.gamma, smoothing=self.smoothing
            )
            focal = focal + (counts * terms).sum()
            learned = learned + len(places)
            code_right = encode_anchors(image.boxes[objects], anchors[places])
            # The code's mask: a coordinate whose target is exactly 0 does not count.
            weights = (code_right != 0) * image.weights[objects, None]
            errors = functional.huber_loss(code[number, places], code_right, reduction="none", delta=self.delta)
            huber = huber + (weights * errors).sum()
        return {"class": focal / learned, "box": self.box_weight * huber / (4 * learned)}
