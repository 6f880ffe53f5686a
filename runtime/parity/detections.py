"""How far an engine's detections are from the reference model's, as average precision.

What a user loses is average precision on annotated pictures; :func:`labelled_agreement` measures that. Without
annotations the model's own detections stand in for the objects, :func:`detection_agreement`. A count of the
detections that both have says less: a score that moves from 0.31 to 0.24 changes what one threshold shows, and hardly
the order of the detections, of which average precision is made. YOLOX-nano in BF16 keeps 0.93 of its detections by
such a count, and loses no average precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from runtime.bundle.manifest import Decisions
from runtime.common.arrays import Array
from runtime.detection.average_precision import Objects, paired_interval, precision_curves
from runtime.detection.postprocess import DetectedBoxes, DetectionSettings, detected_boxes
from runtime.images.preprocess import InputGeometry

LOW_SCORE = 0.01
"""The threshold at which average precision is measured: what scores less adds nothing to it that counts."""

IOU = 0.5

_SETTINGS = DetectionSettings(())
# Of the model's detections those from here to the threshold count neither way: it does not stand by them itself.
_IGNORED_FROM = 0.1
# With how many other images' detections an image's are compared, to know what an engine that ignores the image reaches.
_OTHERS = 5

REFERENCE_SETTINGS, ENGINE_SETTINGS = (replace(_SETTINGS, score=score) for score in (_IGNORED_FROM, LOW_SCORE))
"""The settings at which the model's own detections, and an engine's, are compared."""

Outputs = tuple[Array, Array]
"""``scores`` (N, A, C) and ``boxes`` (N, A, 4) of N images, in pixels of the graph's input."""


class ImagePlace(NamedTuple):
    """How boxes get from the graph's input into an image, and the image's (H, W)."""

    geometry: InputGeometry
    size: tuple[int, int]


def detection_agreement(reference: Outputs, actual: Outputs) -> Decisions:
    """The average precision of an engine's detections, with the model's own as the objects.

    The model's detections from the default threshold on are the objects, those a little below it are ignored, and all
    classes make one curve: few pictures have few objects of each class. The model itself reaches 1.

    Args:
        reference: The reference model's outputs.
        actual: The engine's.
    """
    own = _detections(reference, REFERENCE_SETTINGS)
    objects = [own_objects(found) for found in own]
    count = sum(int((~item.ignored).sum()) for item in objects)
    if not count:  # any engine agrees that detects nothing
        return Decisions(OWN, 1.0, 0, chance=1.0, decisive=True)
    classes = reference[0].shape[2]

    def value(found: Sequence[DetectedBoxes]) -> float:
        return precision_curves(objects, found, classes=classes, thresholds=(IOU,)).value(pooled=True)

    shifts = range(1, min(len(own), _OTHERS))
    others = [value(own[shift:] + own[:shift]) for shift in shifts]
    chance = float(np.mean(others)) if others else 0.0
    found = _detections(actual, ENGINE_SETTINGS)
    return Decisions(OWN, value(found), count, chance=chance, decisive=True)


def labelled_agreement(
    objects: Sequence[Objects],
    places: Sequence[ImagePlace],
    reference: Outputs,
    actual: Outputs,
    settings: DetectionSettings,
    *,
    own: Decisions | None = None,
) -> Decisions:
    """The agreement of own detections, or less where annotated images show that average precision is lost.

    What they show is the lower end of the loss's paired interval: on 31 photographs with 63 persons the loss itself
    moves by a point with the photographs that were drawn, while the model's own detections move with the engine alone.

    Args:
        objects: The annotated objects of each image, in its pixels.
        places: Where each image lies in the graph's input.
        reference: The reference model's outputs.
        actual: The engine's.
        settings: The detector's; the threshold is replaced by a low one.
        own: The agreement of own detections where more than boxes decides; None for :func:`detection_agreement`.
    """
    low, classes = replace(settings, score=LOW_SCORE), reference[0].shape[2]
    first, second = (
        precision_curves(objects, _detections(outputs, low, places), classes=classes) for outputs in (reference, actual)
    )
    if own is None:
        own = detection_agreement(reference, actual)
    if not first.objects.any():
        return own
    least, most = paired_interval(first, second)
    return replace(own, agreement=min(own.agreement, 1.0 - max(0.0, least)), interval=(1.0 - most, 1.0 - least))


OWN = "AP50 of the model's own detections"


def own_objects(found: DetectedBoxes) -> Objects:
    """The model's detections as what an engine has to find."""
    ignored = found.scores < np.float32(_SETTINGS.score)
    return Objects(found.boxes, found.class_ids, ignored, np.zeros(len(ignored), np.bool_))


def _detections(
    outputs: Outputs, settings: DetectionSettings, places: Sequence[ImagePlace] | None = None
) -> list[DetectedBoxes]:
    """The detections of each image: in its pixels where it is placed, else in those of the input."""
    placed: Sequence[ImagePlace | None] = places or [None] * len(outputs[0])
    return [
        detected_boxes(scores, boxes, settings)
        if place is None
        else detected_boxes(scores, boxes, settings, geometry=place.geometry, size=place.size)
        for scores, boxes, place in zip(*outputs, placed, strict=True)
    ]
