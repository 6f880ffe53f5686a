"""Detection of objects of classes that were trained: one graph ``detect``, scores and boxes of fixed anchors.

``image`` (N, channels, H, W) -> ``scores`` (N, A, C) float32, 0..1, of A boxes and C classes, and ``boxes`` (N, A, 4)
float32 x0, y0, x1, y1 in pixels of the graph's input. Threshold and class-wise suppression are not in the graph: see
:mod:`runtime.detection.postprocess`. ``postprocess`` of the deployment holds :class:`DetectionSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from runtime.bundle.manifest import Decisions
from runtime.bundle.spec import Graph, TensorSpec
from runtime.common.arrays import Array
from runtime.detection.postprocess import DetectedRows, DetectionSettings, detected_rows
from runtime.errors import EngineError
from runtime.images.decode import Image
from runtime.images.preprocess import InputGeometry
from runtime.parity.detections import detection_agreement
from runtime.results import Detections
from runtime.tasks import Context, Result, Task, TaskTraits
from runtime.tasks._fixed import FixedLabelsTask, checked_threshold, count_from, labels_from, share_from
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


class DetectionTask(FixedLabelsTask):
    """Graph ``detect``: ``image`` -> ``scores`` and ``boxes``.

    A task whose graph gives more than a box of each object is made of this one: it names its :attr:`GRAPH` and has its
    own :meth:`expected_outputs` and :meth:`result_of`.
    """

    GRAPH: ClassVar[str] = "detect"
    MAKES: ClassVar[str] = "detection makes boxes"

    def __init__(self, context: Context) -> None:
        self._declared = self._settings = settings_from(context.deployment.postprocess)
        super().__init__(context, self._settings.labels)

    def expected_outputs(self, spec: Graph, labels: tuple[str, ...]) -> tuple[tuple[TensorSpec, ...], str]:
        rows, count = spec.outputs[0].shape[1:2], len(labels)
        outputs = (
            TensorSpec("scores", "float32", ("N", *rows, count)),
            TensorSpec("boxes", "float32", ("N", *rows, 4)),
        )
        return outputs, f"'scores', float32 (N, A, {count}) for its {count} labels, and 'boxes', float32 (N, A, 4)"

    @property
    def threshold(self) -> float:
        return self._settings.score

    def set_threshold(self, score: float | None) -> None:
        self._settings = self._declared if score is None else replace(self._declared, score=checked_threshold(score))

    def predict(self, images: Sequence[Image], *, top_k: int) -> list[Result]:
        return [*self.detect(images)]

    def detect(self, images: Sequence[Image], *, score: float | None = None) -> list[Detections]:
        """One result for each image; ``score`` takes the place of the bundle's least score, 0..1."""
        settings = self._settings if score is None else replace(self._settings, score=score)
        return [result for batch in self.batches(images) for result in self._detect(batch, settings)]

    def _detect(self, images: Sequence[Image], settings: DetectionSettings) -> list[Detections]:
        timer = StageTimer()
        tensor = self._preprocess(images)
        timer.end("preprocess")
        # Boxes of no score may overflow in the exponential; these are not looked at.
        outputs = self._session.run({"image": tensor}, finite=("scores",))
        timer.end("inference")
        detected = [
            self._detected(image, {name: array[index] for name, array in outputs.items()}, settings)
            for index, image in enumerate(images)
        ]
        timer.end("postprocess")
        speed_ms = timer.speed_ms(len(images))
        return [replace(result, speed_ms=speed_ms) for result in detected]

    def _detected(self, image: Image, outputs: Mapping[str, Array], settings: DetectionSettings) -> Detections:
        size = (image.shape[0], image.shape[1])
        geometry = self._preprocess.geometry(size)
        kept = detected_rows(outputs["scores"], outputs["boxes"], settings, geometry=geometry, size=size)
        self.require_numbers("boxes", kept.detected.boxes)
        return self.result_of(kept, outputs, geometry, size)

    def result_of(
        self, kept: DetectedRows, outputs: Mapping[str, Array], geometry: InputGeometry, size: tuple[int, int]
    ) -> Detections:
        """The result of one image.

        Args:
            kept: The detections, and their rows in the outputs.
            outputs: The graph's outputs for this image, without the batch's axis.
            geometry: Where the image lies in the graph's input.
            size: The image's (H, W).
        """
        boxes, scores, class_ids = kept.detected
        return Detections(boxes, scores, tuple(self.gallery.labels[index] for index in class_ids), class_ids)

    def require_numbers(self, output: str, values: Array) -> None:
        """Raise EngineError if an output is NaN where a detection is."""
        if np.isnan(values).any():
            raise EngineError(
                f"graph {self.GRAPH!r}: the engine's output {output!r} is NaN where its score is above the threshold; "
                "`edgevis verify` shows whether it computes what was trained: open the bundle with another backend= or "
                "precision="
            )
