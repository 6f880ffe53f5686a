"""Weighted boxes fusion: one set of boxes from the detections of several models and views of a picture.

Solovyev, Wang, Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object detection models", Image and
Vision Computing 2021, arXiv:1910.13302, section 3. Two additions: a view may show a part of the picture only (a tile),
and the score is then taken over the views that show the whole box; and of one view only the best box counts in a
cluster, so that a DETR's duplicates, which no NMS has removed, never stand for models that agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError

_EDGE = 2.0  # pixels by which a box may reach over the window that shows it


@dataclass(frozen=True, slots=True, eq=False)
class ViewDetections:
    """What one model found in one view of a picture.

    Attributes:
        boxes_xyxy: (N, 4) float, in pixels of the whole picture.
        scores: (N,) float, 0..1.
        class_ids: (N,) int.
        window_xyxy: The part of the picture that the view shows.
        weight: The model's weight; paper: w.
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    window_xyxy: tuple[float, float, float, float]
    weight: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class FusedDetections:
    """The fused boxes, by falling score.

    Attributes:
        boxes_xyxy: (N, 4) float64, in pixels of the picture.
        scores: (N,) float64, 0..1.
        class_ids: (N,) int64.
        votes: (N,) float64: the share of the views' weight that saw the box, 0..1.
    """

    boxes_xyxy: NDArray[np.float64]
    scores: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    votes: NDArray[np.float64]


def weighted_box_fusion(views: Sequence[ViewDetections], *, iou: float = 0.55) -> FusedDetections:
    """Fuse the boxes of several models and views, class by class.

    Boxes are taken by falling weighted score. Each joins the cluster whose fused box it overlaps most, by an IoU above
    ``iou``, or begins a cluster (section 3, steps 3 to 5); where the cluster has a better box of the same view, it is
    dropped. A fused box is the mean of its cluster's, weighted by their scores (eq. 1 to 3); its score is their mean,
    scaled by the share of the views that could have seen the box and did (eq. 5).

    Raises:
        InputError: ``iou`` is not in 0..1, there is no view, or a weight is not above 0.
    """
    if not 0 < iou < 1:
        raise InputError(f"the IoU of fused boxes is {iou}; allowed: above 0 and below 1, such as 0.55")
    if not views or any(not view.weight > 0 for view in views):
        raise InputError("boxes are fused from at least one view, each with a weight above 0")
    parts = [
        _fused_class(views, class_id, iou) for class_id in sorted({int(c) for view in views for c in view.class_ids})
    ]
    if not parts:
        nothing = np.zeros(0)
        return FusedDetections(np.zeros((0, 4)), nothing, nothing.astype(np.int64), nothing)
    boxes, scores, class_ids, votes = (np.concatenate(items) for items in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    return FusedDetections(boxes[order], scores[order], class_ids[order], votes[order])


def _fused_class(
    views: Sequence[ViewDetections], class_id: int, iou: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    chosen = [view.class_ids == class_id for view in views]
    boxes = np.concatenate([view.boxes_xyxy[rows] for view, rows in zip(views, chosen, strict=True)])
    scores = np.concatenate([view.scores[rows] for view, rows in zip(views, chosen, strict=True)])
    sources = np.concatenate([np.full(rows.sum(), number) for number, rows in enumerate(chosen)])
    weights = np.array([view.weight for view in views])[sources]
    fused = np.zeros_like(boxes)
    members: list[list[int]] = []
    for row in np.argsort(-scores * weights, kind="stable"):
        overlaps = box_iou(boxes[row : row + 1], fused[: len(members)])[0]
        best = int(overlaps.argmax()) if len(members) else 0
        if len(members) and overlaps[best] > iou:
            if sources[row] in sources[members[best]]:
                continue
            members[best].append(int(row))
        else:
            best = len(members)
            members.append([int(row)])
        rows = members[best]
        fused[best] = np.average(boxes[rows], axis=0, weights=scores[rows] * weights[rows])
    fused = fused[: len(members)]
    possible = sum((_shown(fused, view.window_xyxy) * view.weight for view in views), np.zeros(len(fused)))
    seen = np.array([weights[rows].sum() for rows in members])
    mean = np.array([np.average(scores[rows], weights=weights[rows]) for rows in members])
    votes = np.minimum(1.0, seen / np.maximum(possible, seen))
    return fused, mean * votes, np.full(len(fused), class_id, np.int64), votes


def _shown(boxes: NDArray[np.float64], window: tuple[float, float, float, float]) -> NDArray[np.bool_]:
    """Which boxes lie inside a window."""
    low, high = np.array(window[:2]) - _EDGE, np.array(window[2:]) + _EDGE
    return np.asarray((boxes[:, :2] >= low).all(axis=1) & (boxes[:, 2:] <= high).all(axis=1), np.bool_)


def box_iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) intersections over unions of (N, 4) and (M, 4) boxes, xyxy."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    sizes = np.clip(np.minimum(first[:, None, 2:], second[None, :, 2:]) - corner, 0, None)
    shared: NDArray[np.float64] = sizes.prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    result: NDArray[np.float64] = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)
    return result
