"""The overlap of boxes, and class-wise non-maximum suppression, in NumPy.

A box is x0, y0, x1, y1 in pixels, its edges as continuous coordinates: pixel i covers i to i + 1, and the width is
x1 - x0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array


def areas_of(boxes: Array) -> npt.NDArray[np.float64]:
    """The areas of boxes xyxy (..., 4); 0 where a box has no width or no height."""
    whole = np.asarray(boxes, np.float64)
    sides = np.maximum(whole[..., 2:] - whole[..., :2], 0.0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def pairwise_iou(first: Array, second: Array) -> npt.NDArray[np.float64]:
    """Intersection over union, (N, M), of each of N boxes with each of M; 0 where both have no area."""
    one, other = np.asarray(first, np.float64)[:, None], np.asarray(second, np.float64)[None]
    sides = np.maximum(np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]), 0.0)
    shared = sides[..., 0] * sides[..., 1]
    either = areas_of(one) + areas_of(other) - shared
    return np.asarray(np.divide(shared, either, out=np.zeros_like(shared), where=either > 0))


def best_pairs(scores: Array, *, threshold: float, limit: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The boxes and classes of the highest scores, the best first; of equal scores the first in the array.

    Args:
        scores: (A, C) of A boxes and C classes; NaN is never chosen.
        threshold: The least score that counts.
        limit: The largest number of pairs.

    Returns:
        The box and the class of each pair, (N,) int64.
    """
    flat = np.ascontiguousarray(scores).reshape(-1)
    chosen = np.flatnonzero(flat >= flat.dtype.type(threshold))
    if len(chosen) > limit:
        values = flat[chosen]
        chosen = chosen[values >= np.partition(values, len(values) - limit)[len(values) - limit]]
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")][:limit]
    box, label = np.divmod(chosen, scores.shape[1])
    return box.astype(np.int64), label.astype(np.int64)


def classwise_nms(boxes: Array, class_ids: Array, *, iou: float, limit: int) -> npt.NDArray[np.int64]:
    """Greedy non-maximum suppression within each class.

    Args:
        boxes: (N, 4) xyxy, the best first, each with an area.
        class_ids: (N,); boxes of different classes do not suppress each other.
        iou: A box goes when its IoU with a better one of its class that stays is above this, 0..1.
        limit: The largest number of boxes that stay, of all classes together.

    Returns:
        The indices of those that stay, the best first, (M,) int64.
    """
    whole, labels = np.asarray(boxes, np.float64), np.asarray(class_ids)
    areas = areas_of(whole)
    waiting = np.arange(len(whole))
    kept: list[int] = []
    while len(waiting) and len(kept) < limit:
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        others = whole[waiting]
        sides = np.minimum(whole[best, 2:], others[:, 2:]) - np.maximum(whole[best, :2], others[:, :2])
        shared = np.maximum(sides[:, 0], 0.0) * np.maximum(sides[:, 1], 0.0)
        overlaps = shared > iou * (areas[best] + areas[waiting] - shared)
        waiting = waiting[~(overlaps & (labels[waiting] == labels[best]))]
    return np.array(kept, np.int64)
