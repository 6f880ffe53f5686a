"""SimOTA: which cells of an anchor-free detector learn which object.

Paper: Ge, Liu, Wang, Li, Sun, "YOLOX: Exceeding YOLO Series in 2021", arXiv:2107.08430, section 2.1, "SimOTA"; a
simplification of Ge et al., "OTA: Optimal Transport Assignment for Object Detection", CVPR 2021. The paper leaves the
number of best overlaps open; 10, the radius of 2.5 cells and the weight 3 are those of the released code.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevis.losses._boxes import ImageTargets, centres_inside, pairwise_iou

_RADIUS = 2.5
_BEST = 10
_IOU_WEIGHT = 3.0
_OUTSIDE = 1e5


@torch.no_grad()
def sim_ota(
    boxes: Tensor, objectness: Tensor, logits: Tensor, centres: Tensor, strides: Tensor, targets: ImageTargets
) -> tuple[Tensor, Tensor]:
    """Assign cells to the objects of one image by the lowest cost of classification and overlap.

    A cell is a candidate if its centre lies in an object's box or within 2.5 strides of the box's centre; one that
    fulfils only one of both is taken last. An object gets as many cells as its ten largest overlaps sum up to, at
    least one; a cell that several objects want gets the cheapest.

    Args:
        boxes: (A, 4) predicted, xyxy in pixels.
        objectness: (A,) logits.
        logits: (A, C) of the classes.
        centres: (A, 2), of the cells, (x, y) in pixels.
        strides: (A, 1).
        targets: G objects.

    Returns:
        F positions of cells, ascending, and the position of the object that each learns, (F,) int64 both.
    """
    nothing = torch.empty(0, dtype=torch.int64, device=boxes.device)
    if not len(targets.boxes):
        return nothing, nothing
    middle = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2
    inside = centres_inside(centres, targets.boxes)
    near = ((centres[:, None] - middle[None]).abs() < _RADIUS * strides[:, None]).all(2)
    candidates = (inside | near).any(1).nonzero().squeeze(1)
    if not len(candidates):
        return nothing, nothing
    overlap = pairwise_iou(boxes[candidates], targets.boxes)
    # The sum over classes of the binary cross-entropy of sqrt(class x objectness) to the object's class.
    probability = (logits[candidates].sigmoid() * objectness[candidates, None].sigmoid()).sqrt()
    no, yes = torch.log1p(-probability).clamp(min=-100), probability.log().clamp(min=-100)
    classification = -no.sum(1, keepdim=True) + no[:, targets.classes] - yes[:, targets.classes]
    both = (inside & near)[candidates]
    cost = classification - _IOU_WEIGHT * torch.log(overlap + 1e-8) + _OUTSIDE * ~both
    counts = overlap.topk(min(_BEST, len(candidates)), dim=0).values.sum(0).int().clamp(min=1).tolist()
    chosen = torch.zeros_like(both)
    for number, count in enumerate(counts):
        chosen[cost[:, number].topk(count, largest=False).indices, number] = True
    contested = chosen.sum(1) > 1
    chosen[contested] = False
    chosen[contested, cost[contested].argmin(1)] = True
    taken = chosen.any(1)
    return candidates[taken], chosen[taken].int().argmax(1)
