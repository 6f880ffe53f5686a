"""The agreement of two detectors' decisions: of an engine and the reference model, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from runtime.bundle.manifest import Decisions
from runtime.common.arrays import Array
from runtime.detection.matching import matched_pairs
from runtime.detection.postprocess import DetectedBoxes, DetectionSettings, detected_boxes

IOU = 0.75
"""Two boxes of one class are the same detection from this IoU on, COCO's strict one: of a box of 30 pixels an edge may
be four pixels off, and at 0.9, which small objects miss by a rounded pixel, no INT8 engine would pass."""

TIE = 0.05
"""A score that is this much below the threshold is a tie with it: any rounding turns one into the other, and a user who
wants both sets another threshold."""

_SETTINGS = DetectionSettings(())
# With how many other images' detections an image's are compared, to know what an engine that ignores the image reaches.
_OTHERS = 5

Outputs = tuple[Array, Array]
"""``scores`` (N, A, C) and ``boxes`` (N, A, 4) of N images, in pixels of the graph's input."""


def detection_agreement(reference: Outputs, actual: Outputs) -> Decisions:
    """The share of the detections of both that the other has, too, at the default threshold or little below it.

    Args:
        reference: The reference model's outputs.
        actual: The engine's.
    """
    expected, measured = _detections(reference), _detections(actual)
    agreement, count = _share(expected, measured)
    shifts = range(1, min(len(expected), _OTHERS))
    others = [_share(expected, expected[shift:] + expected[:shift])[0] for shift in shifts]
    # Without a detection any engine agrees that detects nothing.
    chance = 1.0 if count == 0 else float(np.mean(others)) if others else 0.0
    return Decisions("matched detections", agreement, count, chance=chance)


def _detections(outputs: Outputs) -> list[DetectedBoxes]:
    """The detections of each image from the tie on."""
    settings = replace(_SETTINGS, score=_SETTINGS.score - TIE)
    return [detected_boxes(scores, boxes, settings) for scores, boxes in zip(*outputs, strict=True)]


def _share(expected: Sequence[DetectedBoxes], actual: Sequence[DetectedBoxes]) -> tuple[float, int]:
    """The share of detections that the other list has, 1 where there are none, and how many there are of both."""
    matched = count = 0
    for one, other in zip(expected, actual, strict=True):
        for first, second in ((one, other), (other, one)):
            clear = int((first.scores >= np.float32(_SETTINGS.score)).sum())
            found, _ = matched_pairs(
                DetectedBoxes(first.boxes[:clear], first.scores[:clear], first.class_ids[:clear]), second, iou=IOU
            )
            matched, count = matched + len(found), count + clear
    return (matched / count if count else 1.0), count
