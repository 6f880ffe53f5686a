"""The agreement of two detectors' decisions: of an engine and the reference model, on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from runtime.bundle.manifest import Decisions
from runtime.common.arrays import Array
from runtime.detection.matching import matched_pairs
from runtime.detection.postprocess import DetectedBoxes, DetectionSettings, detected_boxes

IOU = 0.9
"""Two boxes of one class are the same detection from this IoU on."""

_SETTINGS = DetectionSettings(())
# With how many other images' detections an image's are compared, to know what an engine that ignores the image reaches.
_OTHERS = 5

Outputs = tuple[Array, Array]
"""``scores`` (N, A, C) and ``boxes`` (N, A, 4) of N images, in pixels of the graph's input."""


def detection_agreement(reference: Outputs, actual: Outputs) -> Decisions:
    """The share of detections that both have: matched pairs over all that either has.

    Args:
        reference: The reference model's outputs.
        actual: The engine's.
    """
    expected, measured = list(_detections(reference)), list(_detections(actual))
    agreement, count = _share(expected, measured)
    shifts = range(1, min(len(expected), _OTHERS))
    others = [_share(expected, expected[shift:] + expected[:shift])[0] for shift in shifts]
    return Decisions("matched detections", agreement, count, chance=float(np.mean(others)) if others else 0.0)


def _detections(outputs: Outputs) -> Iterator[DetectedBoxes]:
    return (detected_boxes(scores, boxes, _SETTINGS) for scores, boxes in zip(*outputs, strict=True))


def _share(expected: Sequence[DetectedBoxes], actual: Sequence[DetectedBoxes]) -> tuple[float, int]:
    """Matched pairs over all detections, 1 where there are none, and their number."""
    matched = sum(len(matched_pairs(one, other, iou=IOU)[0]) for one, other in zip(expected, actual, strict=True))
    either = sum(map(len, (item.scores for item in (*expected, *actual)))) - matched
    return (matched / either if either else 1.0), either
