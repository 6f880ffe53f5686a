"""From the outputs of a detector's graph to boxes in an image: threshold, mapping, clipping, suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.detection.boxes import areas_of, best_pairs, classwise_nms
from runtime.images.preprocess import InputGeometry

# Far beyond any image, and areas of such sides are within float64.
_FARTHEST = 1e9


@dataclass(frozen=True, slots=True)
class DetectionSettings:
    """The settings of a detector.

    Attributes:
        labels: One name for each class, in the order of the scores.
        score: The least score that counts, 0..1.
        iou: Of two boxes of one class whose IoU is above this only the better one stays, 0..1.
        max_detections: The largest number of boxes in a result.
        candidates: The largest number of pairs of box and class that suppression looks at, the best ones.
    """

    labels: tuple[str, ...]
    score: float = 0.3
    iou: float = 0.5
    max_detections: int = 100
    candidates: int = 1000


class DetectedBoxes(NamedTuple):
    """Detections of one image as arrays, the best first: (N, 4) float32 xyxy, (N,) float32 and (N,) int64."""

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]


class DetectedRows(NamedTuple):
    """Detections of one image, and the row of the graph's output that each is of, (N,) int64."""

    detected: DetectedBoxes
    rows: npt.NDArray[np.int64]


def detected_boxes(
    scores: Array,
    boxes: Array,
    settings: DetectionSettings,
    *,
    geometry: InputGeometry | None = None,
    size: tuple[int, int] | None = None,
) -> DetectedBoxes:
    """The detections of one image, see :func:`detected_rows`, which says where in the output they are, too."""
    return detected_rows(scores, boxes, settings, geometry=geometry, size=size).detected


def detected_rows(
    scores: Array,
    boxes: Array,
    settings: DetectionSettings,
    *,
    geometry: InputGeometry | None = None,
    size: tuple[int, int] | None = None,
) -> DetectedRows:
    """The detections of one image; training's evaluation and the comparison of engines use it, too.

    A box may belong to several classes. Coordinates beyond float32, as the exponential of an untrained box makes them,
    are those of the image's edge. Boxes without an area inside the image are dropped before suppression.

    Args:
        scores: (A, C) float32, 0..1.
        boxes: (A, 4) float32 xyxy in pixels of the graph's input; may hold infinities.
        settings: Threshold, suppression and limits.
        geometry: Maps the boxes to the image; without it they stay in pixels of the input.
        size: The (H, W) that boxes are clipped to; without it they are not clipped.

    Returns:
        At most ``max_detections``, the best first; of equal scores the first in the array. A box of NaN with a score
        above the threshold is among them, for the caller to refuse.
    """
    rows, class_ids = best_pairs(scores, threshold=settings.score, limit=settings.candidates)
    candidates = placed(boxes[rows], geometry=geometry, size=size)
    some = ~(areas_of(candidates) <= 0.0)  # NaN stays
    candidates, rows, class_ids = candidates[some], rows[some], class_ids[some]
    kept = classwise_nms(candidates, class_ids, iou=settings.iou, limit=settings.max_detections)
    chosen = np.asarray(scores[rows[kept], class_ids[kept]], np.float32)
    return DetectedRows(DetectedBoxes(candidates[kept], chosen, class_ids[kept]), rows[kept])


def placed(
    coordinates: Array, *, geometry: InputGeometry | None = None, size: tuple[int, int] | None = None
) -> npt.NDArray[np.float32]:
    """Boxes xyxy (..., 4) or points x, y (..., 2) of a graph's output, where they lie in the image.

    Args:
        coordinates: In pixels of the graph's input; NaN stays.
        geometry: Maps them to the image; without it they stay in pixels of the input.
        size: The (H, W) that each coordinate is clipped to; without it infinity becomes a number far away.
    """
    found = np.asarray(coordinates, np.float64)
    if geometry is not None:
        found = geometry.to_image(found)
    low, high = (-_FARTHEST, np.full(2, _FARTHEST)) if size is None else (0.0, np.array(size[::-1], np.float64))
    return np.clip(found, low, np.tile(high, found.shape[-1] // 2)).astype(np.float32)
