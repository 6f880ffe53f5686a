"""How far an engine's instances are from the reference model's: by their boxes, and by their masks.

Boxes alone would pass an engine whose outlines are wrong inside them. The measure of masks is that of boxes, see
:mod:`runtime.parity.detections`, with the IoU of the outlines' insides.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from runtime.bundle.manifest import Decisions
from runtime.common.arrays import Array
from runtime.detection.average_precision import precision_curves
from runtime.detection.boxes import pairwise_iou
from runtime.detection.postprocess import DetectedRows, DetectionSettings, detected_rows, placed
from runtime.images.polygons import polygon_ious
from runtime.parity.detections import ENGINE_SETTINGS, REFERENCE_SETTINGS, detection_agreement, own_objects

OWN = "AP of the model's own boxes and masks"

MASK_IOUS = (0.5, 0.75)
"""The least IoU of masks that are of one instance; the figure is the mean over both."""

OutlineOutputs = tuple[Array, Array, Array]
"""``scores`` (N, P, C), ``boxes`` (N, P, 4) and ``polygons`` (N, P, V, 2) of N images, in pixels of the input."""


def instance_agreement(reference: OutlineOutputs, actual: OutlineOutputs) -> Decisions:
    """The average precision of an engine's instances, with the model's own as the objects: of boxes or of masks.

    The smaller of the two counts: AP50 of boxes, as of a detector, and the mean of AP50 and AP75 of masks.

    Args:
        reference: The reference model's outputs.
        actual: The engine's.
    """
    boxes = replace(detection_agreement(reference[:2], actual[:2]), metric=OWN)
    if not boxes.count:
        return boxes
    own, found = _detected(reference, REFERENCE_SETTINGS), _detected(actual, ENGINE_SETTINGS)
    overlaps = [
        _mask_overlaps(there, outlines, others, other_outlines)
        for there, outlines, others, other_outlines in zip(found, actual[2], own, reference[2], strict=True)
    ]
    masks = precision_curves(
        [own_objects(item.detected) for item in own],
        [item.detected for item in found],
        classes=reference[0].shape[2],
        thresholds=MASK_IOUS,
        overlaps=overlaps,
    ).value(pooled=True)
    return replace(boxes, agreement=min(boxes.agreement, masks))


def _detected(outputs: OutlineOutputs, settings: DetectionSettings) -> list[DetectedRows]:
    scores, boxes, _ = outputs
    return [detected_rows(*item, settings) for item in zip(scores, boxes, strict=True)]


def _mask_overlaps(
    found: DetectedRows, outlines: Array, own: DetectedRows, own_outlines: Array
) -> npt.NDArray[np.float64]:
    """(D, I): the IoU of the masks of an engine's detections with those of the model's, 0 of other classes."""
    same = found.detected.class_ids[:, None] == own.detected.class_ids[None]
    overlaps = np.zeros(same.shape)
    boxes = pairwise_iou(found.detected.boxes, own.detected.boxes)
    theirs, ours = placed(outlines[found.rows]), placed(own_outlines[own.rows])
    one, other = np.nonzero(same & (boxes > 0))  # only outlines whose boxes overlap do
    # An outline without an inside, as untrained weights make them, has its box to compare.
    hollow = polygon_ious(ours, ours) == 0
    overlaps[one, other] = np.where(hollow[other], boxes[one, other], polygon_ious(theirs[one], ours[other]))
    return overlaps
