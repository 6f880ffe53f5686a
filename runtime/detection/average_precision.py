"""COCO's average precision in NumPy: for builds and devices, which have no pycocotools.

Definition: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014: greedy matching at IoU 0.50 to 0.95 in
steps of 0.05, the best score first; an ignored object counts neither way. The value is the area under the whole curve
of precision and recall, not the mean at 101 recalls: it moves with every detection, where the mean moves in steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.detection.boxes import areas_of, pairwise_iou
from runtime.detection.postprocess import DetectedBoxes

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""COCO's thresholds of IoU."""

_FALSE, _RIGHT, _IGNORED = 0, 1, 2


class Objects(NamedTuple):
    """What is to be found in an image: (I, 4) float32 xyxy, (I,) int64, and (I,) bool of those that do not count.

    A detection of an ignored object is neither right nor wrong. A crowd, of which any number may be detected, is an
    ignored object with ``many``, (I,) bool.
    """

    boxes: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]
    many: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class PrecisionCurves:
    """The matched detections of N images, from which an average precision follows for any weights of the images.

    Attributes:
        image: (D,) int64, the image of each detection; the highest scores first.
        class_id: (D,) int64.
        outcome: (T, D) int8 for T thresholds: false, right, or ignored.
        objects: (N, C) int64, how many objects count of each class in each image.
    """

    image: npt.NDArray[np.int64]
    class_id: npt.NDArray[np.int64]
    outcome: npt.NDArray[np.int8]
    objects: npt.NDArray[np.int64]

    def value(self, weights: Array | None = None, *, pooled: bool = False) -> float:
        """Average precision, 0..1: the mean over thresholds and over the classes that have objects.

        Args:
            weights: (N,) how often each image counts, as a bootstrap draws them; None for once.
            pooled: One curve for all classes together, which few objects of many classes ask for.

        Returns:
            NaN where no object counts.
        """
        weight = np.ones(len(self.objects)) if weights is None else np.asarray(weights, np.float64)
        totals = weight @ self.objects
        if pooled:
            return self._area(np.arange(len(self.image)), weight, float(totals.sum()))
        areas = [
            self._area(np.flatnonzero(self.class_id == number), weight, float(total))
            for number, total in enumerate(totals)
            if total > 0
        ]
        return float(np.mean(areas)) if areas else float("nan")

    def _area(self, rows: npt.NDArray[np.int64], weight: Array, total: float) -> float:
        """The area under the curve of some detections, the mean over thresholds."""
        if total <= 0:
            return float("nan")
        counted = weight[self.image[rows]]
        outcome = self.outcome[:, rows]
        right = (outcome == _RIGHT) * counted
        hits, misses = np.cumsum(right, axis=1), np.cumsum((outcome == _FALSE) * counted, axis=1)
        precision = hits / np.maximum(hits + misses, np.finfo(np.float64).tiny)
        # The precision at a recall is the largest at this recall or beyond.
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        return float((right * envelope).sum(axis=1).mean() / total)


def precision_curves(
    objects: Sequence[Objects],
    detections: Sequence[DetectedBoxes],
    *,
    classes: int,
    thresholds: Sequence[float] = THRESHOLDS,
    overlaps: Sequence[Array] | None = None,
) -> PrecisionCurves:
    """Match the detections of N images with what is to be found in them.

    Args:
        objects: What is to be found in each image.
        detections: Those of each image at a low threshold, the best first: what is left out counts as not found.
        classes: The number of classes, C.
        thresholds: The least IoU of a match.
        overlaps: For each image the IoU of its detections with its objects, (D, I), such as that of masks; of a crowd,
            how much of the detection is inside. None for that of the boxes.
    """
    counts = np.zeros((len(objects), classes), np.int64)
    outcomes, images, scores, class_ids = [], [], [], []
    for index, (there, found) in enumerate(zip(objects, detections, strict=True)):
        np.add.at(counts[index], there.class_ids[~there.ignored], 1)
        known = None if overlaps is None else np.array(overlaps[index], np.float64)
        outcomes.append(_outcomes(there, found, thresholds, known))
        images.append(np.full(len(found.scores), index))
        scores.append(found.scores)
        class_ids.append(found.class_ids)
    order = np.argsort(-np.concatenate([np.empty(0, np.float32), *scores]), kind="stable")
    return PrecisionCurves(
        np.concatenate([np.empty(0, np.int64), *images])[order],
        np.concatenate([np.empty(0, np.int64), *class_ids])[order],
        np.concatenate([np.empty((len(thresholds), 0), np.int8), *outcomes], axis=1)[:, order],
        counts,
    )


def _outcomes(
    there: Objects, found: DetectedBoxes, thresholds: Sequence[float], overlaps: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.int8]:
    """(T, D): what becomes of each detection of one image, as COCO matches."""
    outcomes = np.full((len(thresholds), len(found.scores)), _FALSE, np.int8)
    if not len(there.boxes) or not len(found.boxes):
        return outcomes
    if overlaps is None:
        overlaps = _box_overlaps(there, found)
    overlaps[(found.class_ids[:, None] != there.class_ids[None]) | np.isnan(overlaps)] = -1.0
    near = np.flatnonzero(overlaps.max(axis=1) >= min(thresholds))
    for place, iou in enumerate(thresholds):
        free = np.ones(len(there.boxes), np.bool_)
        for row in near:
            for ignored, outcome in ((False, _RIGHT), (True, _IGNORED)):
                candidates = np.where(free & (there.ignored == ignored), overlaps[row], -1.0)
                best = int(candidates.argmax())
                if candidates[best] >= iou:
                    outcomes[place, row] = outcome
                    free[best] = there.many[best]
                    break
    return outcomes


def _box_overlaps(there: Objects, found: DetectedBoxes) -> npt.NDArray[np.float64]:
    """(D, I): the IoU of boxes; of a crowd, how much of the detection is inside."""
    overlaps = pairwise_iou(found.boxes, there.boxes)
    if there.many.any():  # of a crowd the detection need only cover a part: intersection over the detection's area
        first, second = areas_of(found.boxes)[:, None], areas_of(there.boxes)[None]
        shared = overlaps * (first + second) / (1 + overlaps)
        inside = np.divide(shared, first, out=np.zeros_like(shared), where=first > 0)
        overlaps = np.where(there.many, inside, overlaps)
    return overlaps


def paired_interval(
    first: PrecisionCurves, second: PrecisionCurves, *, draws: int = 400, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of ``first.value() - second.value()`` by the bootstrap over the images that both saw.

    Images are drawn with replacement, the same for both, so that what is hard about an image falls out of the
    difference.
    """
    random = np.random.default_rng(seed)
    images = len(first.objects)
    differences = []
    for _ in range(draws):
        weights = np.bincount(random.integers(0, images, images), minlength=images)
        differences.append(first.value(weights) - second.value(weights))
    low, high = np.nanquantile(differences, (0.025, 0.975)) if images else (float("nan"),) * 2
    return float(low), float(high)
