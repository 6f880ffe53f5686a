"""COCO's average precision of detections by boxes or by masks, with the interval over images.

Definition: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and cocodataset.org, "Detection
Evaluation": 101 points of recall, IoU from 0.50 to 0.95 in steps of 0.05, at most 100 detections of a class in an
image. A crowd matches any number of detections and counts neither way. Matching is pycocotools'; the accumulation
repeats its steps, so that it can be done for all images but one.

The interval is the jackknife's, of the area under the same curve without its 101 steps: a figure that moves in steps
has pseudo-values that are mostly zero, and an interval that was a third of the bootstrap's on images with one object.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgevis.data.detection import BoxLabels
from runtime.common.arrays import Array
from runtime.common.extras import install_command
from runtime.errors import InputError, MissingDependencyError

__all__ = ["AveragePrecision", "InstanceMasks", "average_precision", "encoded_mask", "require_pycocotools"]

MAX_DETECTIONS = 100
"""The largest number of detections of a class in an image that count, the best ones."""

_RECALLS = np.linspace(0.0, 1.0, 101)
_THRESHOLDS = np.linspace(0.5, 0.95, 10)

Detected = tuple[Array, Array, Array]
"""Detections of an image: boxes (N, 4) xyxy in its pixels, scores (N,), class ids (N,)."""

EncodedMask = dict[str, Any]
"""A mask's run lengths, as pycocotools writes them: ``size`` (H, W) and ``counts``."""


class InstanceMasks(NamedTuple):
    """The masks of N images, encoded: of each label, and of each detection, in their order."""

    truths: Sequence[Sequence[EncodedMask]]
    detections: Sequence[Sequence[EncodedMask]]


@dataclass(frozen=True, slots=True, eq=False)
class AveragePrecision:
    """Average precision on some images.

    Attributes:
        value: AP, the mean over classes and IoU thresholds.
        at_50: AP50, the mean over classes at IoU 0.5.
        by_class: (C, 10) AP of each class at each threshold; NaN for a class without objects.
        samples: Pseudo-values of :attr:`value`, one for each image, see :mod:`edgevis.metrics.jackknife`; those of the
            area under the whole curve, moved by its difference from :attr:`value`.
        samples_50: The same of :attr:`at_50`.
    """

    value: float
    at_50: float
    by_class: NDArray[np.float64]
    samples: tuple[float, ...]
    samples_50: tuple[float, ...]


def encoded_mask(mask: NDArray[np.bool_]) -> EncodedMask:
    """The run lengths of a mask (H, W) bool, which take a hundredth of its memory.

    Raises:
        MissingDependencyError: pycocotools is not installed.
    """
    require_pycocotools()
    from pycocotools.mask import encode

    return dict(encode(np.asfortranarray(mask, np.uint8)))


def average_precision(
    truths: Sequence[BoxLabels],
    detections: Sequence[Detected],
    *,
    classes: int,
    masks: InstanceMasks | None = None,
) -> AveragePrecision:
    """Compare the detections of N images with their annotations.

    Args:
        truths: N labels; ignored regions are COCO's crowds.
        detections: N results, at a low threshold: what is left out counts as not found.
        classes: The number of classes, C.
        masks: With them IoU is that of masks, by pixels, and the figure COCO's mask AP; without, that of boxes.

    Raises:
        InputError: No image has an object, or there are not as many detections as labels, or as masks.
        MissingDependencyError: pycocotools is not installed.
    """
    if len(truths) != len(detections):
        raise InputError(f"{len(truths)} images have labels and {len(detections)} detections; allowed: the same images")
    if not any(labels.objects for labels in truths):
        raise InputError("no image has an object: there is no average precision")
    if masks is not None:
        for kind, there, given in (
            ("labels", [len(labels) for labels in truths], masks.truths),
            ("detections", [len(scores) for _, scores, _ in detections], masks.detections),
        ):
            if there != [len(image) for image in given]:
                raise InputError(
                    f"the numbers of masks are not those of {kind}; allowed: one mask of each, image by image"
                )
    matched = [[_ImageMatches.of(item) for item in row] for row in _matched(truths, detections, classes, masks)]
    both = np.array([_curve_means(row) for row in matched])
    by_class, areas = both[:, 0], both[:, 1]
    mean, mean_50 = _means(by_class)
    count = len(truths)
    left_out = np.tile(areas, (count, 1, 1))
    for index, row in enumerate(matched):
        for place, item in enumerate(row):
            if item is not None:  # without a box of the class the image changes nothing
                left_out[place, index] = _curve_means([*row[:place], *row[place + 1 :]])[1]
    whole = _means(areas)
    without = np.array([whole if np.isnan(table).all() else _means(table) for table in left_out])
    # n times all less n - 1 times all but one, moved from the area to the figure.
    samples = np.array([mean, mean_50]) + (count - 1) * (np.array(whole) - without)
    columns = (tuple(column) for column in samples.T.tolist())
    return AveragePrecision(mean, mean_50, by_class, *columns)


def require_pycocotools() -> None:
    """Raise MissingDependencyError if pycocotools is not installed."""
    if find_spec("pycocotools") is None:
        raise MissingDependencyError(f"detections are measured with pycocotools: {install_command('train')}")


@dataclass(frozen=True, slots=True, eq=False)
class _ImageMatches:
    """The detections of one class in one image.

    Attributes:
        scores: (D,).
        right: (10, D) bool, matched to an object.
        counted: (10, D) bool, not matched to a crowd.
        objects: The number of objects.
    """

    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: int

    @classmethod
    def of(cls, item: dict[str, Any] | None) -> _ImageMatches | None:
        """From pycocotools' record of an image and a class; None where it has neither objects nor detections."""
        if item is None:
            return None
        counted = ~np.asarray(item["dtIgnore"], np.bool_)
        right = (np.asarray(item["dtMatches"]) > 0) & counted
        objects = int((np.asarray(item["gtIgnore"]) == 0).sum())
        return cls(np.asarray(item["dtScores"], np.float64), right, counted, objects)


def _matched(
    truths: Sequence[BoxLabels], detections: Sequence[Detected], classes: int, masks: InstanceMasks | None
) -> list[list[dict[str, Any] | None]]:
    """Pycocotools' records, by class, then by image."""
    require_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth_rows: list[dict[str, Any]] = []
    detected_rows: list[dict[str, Any]] = []
    for image, labels in enumerate(truths, 1):
        for box, label, ignored in zip(labels.boxes.tolist(), labels.classes.tolist(), labels.ignored, strict=True):
            row = _row(len(truth_rows) + 1, image, label, box)
            truth_rows.append({**row, "iscrowd": int(ignored)})
    for image, (boxes, scores, class_ids) in enumerate(detections, 1):
        for box, score, label in zip(boxes.tolist(), scores.tolist(), class_ids.tolist(), strict=True):
            detected_rows.append({**_row(len(detected_rows) + 1, image, label, box), "score": score})
    if masks is not None:
        for rows, encoded in ((truth_rows, masks.truths), (detected_rows, masks.detections)):
            for row, mask in zip(rows, (mask for image in encoded for mask in image), strict=True):
                row["segmentation"] = mask
    # Of encoded masks pycocotools reads the images' sizes and does not use them.
    images = [{"id": image, "height": 0, "width": 0} for image in range(1, len(truths) + 1)]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        sides = []
        for rows in (truth_rows, detected_rows):
            side = COCO()
            side.dataset = {"images": images, "annotations": rows, "categories": [{"id": n} for n in range(classes)]}
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, "bbox" if masks is None else "segm")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.iouThrs, evaluation.params.recThrs = _THRESHOLDS, _RECALLS
        evaluation.evaluate()
    records: list[dict[str, Any] | None] = evaluation.evalImgs
    return [records[start : start + len(truths)] for start in range(0, classes * len(truths), len(truths))]


def _row(number: int, image: int, label: int, box: Sequence[float]) -> dict[str, Any]:
    width, height = box[2] - box[0], box[3] - box[1]
    return {
        "id": number,
        "image_id": image,
        "category_id": label,
        "bbox": [box[0], box[1], width, height],
        "area": width * height,
        "iscrowd": 0,
    }


def _curve_means(items: Sequence[_ImageMatches | None]) -> NDArray[np.float64]:
    """(2, 10): AP of one class at each threshold, and the area under its curve; NaN without objects."""
    there = [item for item in items if item is not None]
    objects = sum(item.objects for item in there)
    if not objects:
        return np.full((2, len(_THRESHOLDS)), np.nan)
    order = np.argsort(-np.concatenate([item.scores for item in there]), kind="mergesort")
    right = np.concatenate([item.right for item in there], 1)[:, order]
    counted = np.concatenate([item.counted for item in there], 1)[:, order]
    hits, misses = np.cumsum(right, 1, dtype=np.float64), np.cumsum(counted & ~right, 1, dtype=np.float64)
    recall, precision = hits / objects, hits / np.maximum(hits + misses, np.spacing(1))
    # The precision at a recall is the largest at this recall or beyond.
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], 1)
    places = [np.searchsorted(row, _RECALLS, side="left") for row in recall]
    means = np.array([row[place].mean() for row, place in zip(padded, places, strict=True)])
    return np.stack([means, (right * envelope).sum(1) / objects])


def _means(by_class: NDArray[np.float64]) -> tuple[float, float]:
    """AP and AP50 over the classes that have objects."""
    there = by_class[~np.isnan(by_class[:, 0])]
    return float(there.mean()), float(there[:, 0].mean())
