"""Calibration data with boxes: what a detector's engine loses is then average precision on them.

The layouts are those that detection is trained on, see :mod:`edgevis.data.detection_split`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from calibration.data.samples import (
    DEFAULT_COUNT,
    MAX_VERIFICATION,
    MIN_COUNT,
    SampleSet,
    check_count,
    sample_set,
    shrunk_to_limit,
    split,
)
from edgevis.data.detection import UNNAMED, BoxLabels, DetectionImages, chosen_classes
from edgevis.data.detection_split import holds_boxes, read_detection_images
from runtime import tasks
from runtime.bundle.manifest import Decisions
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.detection.average_precision import Objects
from runtime.images.preprocess import Preprocessor
from runtime.parity.detections import ImagePlace, labelled_agreement
from runtime.parity.measure import CompareDecisions
from runtime.tasks.detect import settings_from


def labelled_samples(path: Path, labels: Sequence[str]) -> tuple[SampleSet, SampleSet] | None:
    """Images with objects, to calibrate on and others to verify on; None where the data have no such boxes.

    Images that the data set aside for a test are not looked at. Those that the data set aside to validate verify;
    where there are too few of them, half of the images that train do.

    Args:
        path: A folder or zip.
        labels: The detector's classes. Objects of other classes are left out; data without any of them have no boxes.

    Raises:
        SourceError: The data, or an image of them, cannot be read.
        InputError: There are too few images.
    """
    if not path.exists() or not holds_boxes(path):
        return None
    data = read_detection_images(path)
    nameless = data.classes == (UNNAMED,) and len(labels) == 1
    shared = list(labels) if nameless else [name for name in labels if name in data.classes]
    if not shared:
        return None
    data = chosen_classes(data, ",".join(shared))
    numbers = np.array([labels.index(name) for name in data.classes], np.int64)
    roles = data.roles or ("train",) * len(data)
    train, held = ([place for place, role in enumerate(roles) if role == name] for name in ("train", "val"))
    if len(held) < MIN_COUNT:
        return split(_read(data, train, numbers, DEFAULT_COUNT))
    return _read(data, train, numbers, DEFAULT_COUNT // 2), _read(data, held, numbers, MAX_VERIFICATION)


def agreement_on(samples: SampleSet, deployment: Deployment) -> CompareDecisions:
    """The comparison of an engine with the model on images with objects, see :func:`labelled_agreement`."""
    preprocessor = Preprocessor(deployment.preprocess)
    places = [ImagePlace(preprocessor.geometry(image.shape[:2]), image.shape[:2]) for image in samples.images]
    settings, task = settings_from(deployment.postprocess), tasks.load(deployment.task)
    scores, boxes = (f"{deployment.graphs[0].name}/{name}" for name in ("scores", "boxes"))

    def compare(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> Decisions | None:
        own = task.agreement(reference, actual)
        if own is None:
            return None
        outputs, others = ((arrays[scores], arrays[boxes]) for arrays in (reference, actual))
        return labelled_agreement(samples.objects, places, outputs, others, settings, own=own)

    return compare


def _read(data: DetectionImages, places: Sequence[int], numbers: Array, count: int) -> SampleSet:
    """At most ``count`` of the images, evenly spaced, shrunk as other samples are, and their objects."""
    check_count(len(places), f"{data.files.path.name} has", "images to calibrate on")
    if len(places) > count:
        places = [places[index * len(places) // count] for index in range(count)]
    images, objects = [], []
    for place in places:
        image, labels = data[place]
        images.append(shrunk_to_limit(image))
        objects.append(_objects(labels, numbers, images[-1].shape[1] / image.shape[1]))
    return sample_set(images, [""] * len(images), data.files.path.name, objects=objects)


def _objects(labels: BoxLabels, numbers: Array, scale: float) -> Objects:
    """The objects of an image that was resized by ``scale``, with the detector's classes."""
    boxes = np.asarray(labels.boxes * np.float32(scale), np.float32)
    return Objects(boxes, numbers[labels.classes], labels.ignored, labels.ignored)
