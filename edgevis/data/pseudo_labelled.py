"""Pictures that a teacher labelled, as ``python -m edgevis.pseudo_labels`` writes them, for a student to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgevis.data.detection import BoxLabels, DetectionImages, chosen_classes
from edgevis.data.detection_split import read_detection_images
from runtime.errors import InputError


def read_pseudo_labelled(path: Path, classes: Sequence[str], *, score: float, ignore: float) -> DetectionImages:
    """The pictures of a folder or zip in any layout of boxes; all of them train, whatever their splits.

    Args:
        path: The pictures with their boxes; COCO's JSON may give each box a ``score``, which becomes its weight.
        classes: The classes of the labelled data, in their order.
        score: Boxes with this score or more are objects, whether or not the file marks them ``iscrowd``.
        ignore: Boxes with this score or more, but less than ``score``, become ignored regions; others are dropped.

    Raises:
        SourceError: The data cannot be read.
        InputError: A class is lacking, ``ignore`` is above ``score``, or no box is an object.
    """
    if ignore > score:
        raise InputError(f"recipe: ignore_score is {ignore:g}; allowed: at most pseudo_score, {score:g}")
    data = chosen_classes(read_detection_images(path), ",".join(classes))
    labels = tuple(_by_score(part, score, ignore) for part in data.labels)
    if not sum(part.objects for part in labels):
        raise InputError(f"{path}: none of the {len(data)} images has a box with a score of {score:g} or more")
    return replace(data, labels=labels, roles=None)


def _by_score(labels: BoxLabels, score: float, ignore: float) -> BoxLabels:
    objects = labels[labels.weights >= ignore]
    # A crowd that people marked has the score 1 and stays one.
    by_hand = objects.ignored & (objects.weights == 1)
    return BoxLabels(objects.boxes, objects.classes, objects.weights, np.where(by_hand, True, objects.weights < score))
