"""Which anchors of a detector learn which object: by the largest overlap, or by ATSS.

Papers: Tan, Pang, Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020 (the matching of its code);
Zhang, Chi, Yao, Lei, Li, "Bridging the Gap Between Anchor-Based and Anchor-Free Detection via Adaptive Training Sample
Selection", CVPR 2020, algorithm 1.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgevis.losses._boxes import areas, centres_inside, intersections, pairwise_iou

BACKGROUND, IGNORED = -1, -2

_MIN_IOU = 0.5
_ATSS_NEAREST = 9
_MAX_OUTSIDE = 0.5


@torch.no_grad()
def match_largest_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Each anchor learns the box that it overlaps most, if by 0.5 or more; then each box claims its best anchor.

    Where two boxes claim one anchor, the first has it; of equally good anchors the first is claimed.

    Args:
        anchors: (A, 4) float, xyxy.
        boxes: (G, 4) float, xyxy.

    Returns:
        (A,) int64: the position of the box, or :data:`BACKGROUND`.
    """
    matched = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if not len(boxes):
        return matched
    overlap = pairwise_iou(anchors, boxes)
    best, place = overlap.max(1)
    matched = torch.where(best >= _MIN_IOU, place, matched)
    for number, anchor in reversed(list(enumerate(overlap.argmax(0).tolist()))):
        matched[anchor] = number
    return matched


@torch.no_grad()
def match_atss(anchors: Tensor, boxes: Tensor, levels: Sequence[int], *, per_place: int) -> Tensor:
    """ATSS: each box gets the near anchors whose overlap is at least mean plus standard deviation of theirs.

    Candidates are the anchors at the nine places of each level that are nearest to the box's centre; of those above the
    threshold the ones whose centre is inside the box learn it. An anchor that several boxes get learns the one that it
    overlaps most.

    Args:
        anchors: (A, 4) float, xyxy, level by level.
        boxes: (G, 4) float, xyxy.
        levels: The number of anchors of each level; their sum is A.
        per_place: The number of anchors at one place, next to each other.

    Returns:
        (A,) int64: the position of the box, or :data:`BACKGROUND`.
    """
    matched = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if not len(boxes):
        return matched
    overlap = pairwise_iou(anchors, boxes)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    distance = torch.cdist(centres, (boxes[:, :2] + boxes[:, 2:]) / 2)
    candidates, first = [], 0
    for count in levels:
        nearest = min(_ATSS_NEAREST * per_place, count)
        candidates.append(distance[first : first + count].topk(nearest, dim=0, largest=False).indices + first)
        first += count
    places = torch.cat(candidates)
    near = overlap.gather(0, places)
    threshold = near.mean(0) + near.std(0)
    inside = centres_inside(centres, boxes).gather(0, places)
    positive = torch.zeros_like(overlap, dtype=torch.bool).scatter(0, places, (near >= threshold) & inside)
    best, place = torch.where(positive, overlap, overlap.new_full((), -1.0)).max(1)
    return torch.where(best >= 0, place, matched)


def ignore_regions(matched: Tensor, anchors: Tensor, regions: Tensor) -> Tensor:
    """The matches with unmatched anchors that lie by half or more in ignored regions set to :data:`IGNORED`.

    Args:
        matched: (A,) int64.
        anchors: (A, 4) float, xyxy.
        regions: (R, 4) float, xyxy.
    """
    if not len(regions):
        return matched
    covered = (intersections(anchors, regions) / areas(anchors)[:, None]).amax(1) >= _MAX_OUTSIDE
    return torch.where(covered & (matched == BACKGROUND), torch.full_like(matched, IGNORED), matched)
