"""The person detector that ships: YOLOX-nano with one class and an input of 352 x 480 pixels.

Architecture: that of :mod:`edgevis.models.yolox` (Ge, Liu, Wang, Li, Sun, 2021). An input of the shape of photographs
and video has as many pixels as the published 416 x 416 and shows a 4:3 picture an eighth larger, a 16:9 one a seventh.
Provenance: our own code. The weights that ship began as the published ones of YOLOX-nano (Apache-2.0): its backbone is
theirs, the head was trained as a Noisy Student (Xie, Luong, Hovy, Le, CVPR 2020, arXiv:1911.04252), see
``weights/person-detector.json`` and docs/person-detector.md.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from dataclasses import replace

from edgevis.models.entry import ModelEntry
from edgevis.models.yolox import FINE_TUNE, YOLOX, deployment_of_module, yolox_deployment

HEIGHT, WIDTH = 352, 480


def person_detector(
    *, num_classes: int = 1, height: int = HEIGHT, width: int = WIDTH, labels: str = "", activation: str = "silu"
) -> YOLOX:
    """A detector of persons; see :class:`edgevis.models.yolox.YOLOX` for the options."""
    return YOLOX(num_classes=num_classes, height=height, width=width, labels=labels, activation=activation)


# The student begins with its teacher's weights; the teacher's maps hold it where the pictures teach nothing. Some 1,500
# pictures are too few kinds of scenes to move a backbone and batch norms that learned from 118,000.
_NOISY_STUDENT = replace(
    FINE_TUNE,
    epochs=6,
    learning_rate=3e-4,
    ema_decay=0.99,
    frozen=("backbone",),
    frozen_norms=True,
    scale=(0.6, 1.6),
    jitter=0.4,
    l1_epochs=1,
    distill=0.5,
)

ENTRIES = (
    ModelEntry(
        name="person-detector",
        build=person_detector,
        deployment=yolox_deployment(HEIGHT, WIDTH, ("person",)),
        paper="Ge, Liu, Wang, Li, Sun: YOLOX: Exceeding YOLO Series in 2021, 2021",
        licence="Apache-2.0",
        parameters=896_754,
        weights="person-detector.safetensors",
        deploy=deployment_of_module,
        class_predictors=("head.cls_preds.",),
        recipes={"noisy-student": _NOISY_STUDENT},
    ),
)
