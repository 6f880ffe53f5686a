"""Detection of objects of classes that were trained: one graph ``detect``, scores and boxes of fixed anchors.

``image`` (N, channels, H, W) -> ``scores`` (N, A, C) float32, 0..1, of A boxes and C classes, and ``boxes`` (N, A, 4)
float32 x0, y0, x1, y1 in pixels of the graph's input. Threshold and class-wise suppression are not in the graph: see
:mod:`runtime.detection.postprocess`. ``postprocess`` of the deployment holds :class:`DetectionSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from runtime.bundle.manifest import Decisions
from runtime.bundle.spec import TensorSpec
from runtime.common.arrays import Array
from runtime.detection.postprocess import DetectedBoxes, DetectionSettings, detected_boxes
from runtime.enrolment.quality import EnrolmentReport
from runtime.errors import EngineError, EnrolmentError, InputError, SchemaError
from runtime.images.decode import Image
from runtime.images.masks import Mask
from runtime.parity.detections import detection_agreement
from runtime.results import Detections
from runtime.tasks import Context, Result, Task, TaskTraits
from runtime.tasks._fixed import FIXED, FixedLabels, checked_threshold, count_from, labels_from, share_from
from runtime.tasks._timing import StageTimer

__all__ = ["BOXES", "SCORES", "TRAITS", "DetectionSettings", "DetectionTask", "agreement", "open_task", "settings_from"]

SCORES, BOXES = "detect/scores", "detect/boxes"
"""The names of the outputs among those of all graphs."""

# A point of average precision. With depthwise convolutions in INT8, SiLU networks lose ten: of YOLOX-nano's values
# before SiLU the few large ones set the range, and a depthwise convolution has no other channels that even it out.
TRAITS = TaskTraits(Detections, enrolment="nothing", max_drop=0.01, float_first=("depthwise", "last"))


def open_task(context: Context) -> Task:
    return DetectionTask(context)


def settings_from(postprocess: Mapping[str, Any]) -> DetectionSettings:
    """Reads a manifest's ``postprocess``: ``labels`` and, optionally, the other settings.

    Raises:
        SchemaError: The labels are not distinct names, or a number is out of its range.
    """
    default = DetectionSettings(())
    return DetectionSettings(
        labels=labels_from(postprocess),
        score=share_from(postprocess, "score", default.score),
        iou=share_from(postprocess, "iou", default.iou),
        max_detections=count_from(postprocess, "max_detections", default.max_detections),
        candidates=count_from(postprocess, "candidates", default.candidates),
    )


def agreement(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> Decisions | None:
    """The average precision of the engine's detections, see :func:`runtime.parity.detections.detection_agreement`."""
    if SCORES not in actual or BOXES not in actual:
        return None
    return detection_agreement((reference[SCORES], reference[BOXES]), (actual[SCORES], actual[BOXES]))


class DetectionTask:
    """Graph ``detect``: ``image`` -> ``scores`` and ``boxes``."""

    open_set = None
    """The scores are those of trained classes; there are no strangers."""

    def __init__(self, context: Context) -> None:
        spec = context.deployment.graph("detect")
        self._declared = self._settings = settings_from(context.deployment.postprocess)
        labels = self._settings.labels
        anchors = spec.outputs[0].shape[1:2]
        expected = (
            TensorSpec("scores", "float32", ("N", *anchors, len(labels))),
            TensorSpec("boxes", "float32", ("N", *anchors, 4)),
        )
        if spec.inputs != (context.deployment.preprocess.input,) or spec.outputs != expected:
            raise SchemaError(
                f"graph 'detect' maps {context.deployment.preprocess.input} to 'scores', float32 (N, A, {len(labels)}) "
                f"for its {len(labels)} labels, and 'boxes', float32 (N, A, 4); the bundle has {spec}"
            )
        self.gallery = FixedLabels(labels)
        self._session = context.sessions["detect"]
        self._preprocess = context.preprocess
        self._chunk = context.deployment.max_batch

    @property
    def threshold(self) -> float:
        return self._settings.score

    def set_threshold(self, score: float | None) -> None:
        self._settings = self._declared if score is None else replace(self._declared, score=checked_threshold(score))

    def enroll(
        self, label: str, images: Sequence[Image], masks: Sequence[Mask] | None, *, names: Sequence[str], strict: bool
    ) -> EnrolmentReport:
        raise EnrolmentError(FIXED)

    def embed(self, images: Sequence[Image]) -> Array:
        raise InputError("detection makes boxes, not embeddings; there is nothing to embed")

    scored_rows = embed

    def predict(self, images: Sequence[Image], *, top_k: int) -> list[Result]:
        return [*self.detect(images)]

    def detect(self, images: Sequence[Image], *, score: float | None = None) -> list[Detections]:
        """One result for each image; ``score`` takes the place of the bundle's least score, 0..1."""
        settings = self._settings if score is None else replace(self._settings, score=score)
        return [
            result
            for start in range(0, len(images), self._chunk)
            for result in self._detect(images[start : start + self._chunk], settings)
        ]

    def _detect(self, images: Sequence[Image], settings: DetectionSettings) -> list[Detections]:
        timer = StageTimer()
        tensor = self._preprocess(images)
        timer.end("preprocess")
        # Boxes of no score may overflow in the exponential; these are not looked at.
        outputs = self._session.run({"image": tensor}, finite=("scores",))
        timer.end("inference")
        detected = [
            self._boxes(*item, settings) for item in zip(images, outputs["scores"], outputs["boxes"], strict=True)
        ]
        timer.end("postprocess")
        speed_ms = timer.speed_ms(len(images))
        labels = self.gallery.labels
        return [
            Detections(boxes, scores, tuple(labels[index] for index in class_ids), class_ids, speed_ms)
            for boxes, scores, class_ids in detected
        ]

    def _boxes(self, image: Image, scores: Array, boxes: Array, settings: DetectionSettings) -> DetectedBoxes:
        size = (image.shape[0], image.shape[1])
        detected = detected_boxes(scores, boxes, settings, geometry=self._preprocess.geometry(size), size=size)
        if np.isnan(detected.boxes).any():
            raise EngineError(
                "graph 'detect': the engine's output 'boxes' is NaN where its score is above the threshold; "
                "`edgevis verify` shows whether it computes what was trained: open the bundle with another backend= or "
                "precision="
            )
        return detected
