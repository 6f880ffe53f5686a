"""Segmentation of single objects of classes that were trained, by their outlines: one graph ``outline``.

``image`` (N, channels, H, W) -> ``scores`` (N, P, C) float32, 0..1, of P outlines and C classes, ``boxes`` (N, P, 4)
float32 x0, y0, x1, y1, and ``polygons`` (N, P, V, 2) float32 x, y of V vertices in order around the outline, both in
pixels of the graph's input. How a model makes outlines is its own: threshold and class-wise suppression of boxes are
those of :mod:`runtime.tasks.detect`, and so is ``postprocess`` of the deployment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from runtime.bundle.manifest import Decisions
from runtime.bundle.spec import Graph, TensorSpec
from runtime.common.arrays import Array
from runtime.detection.postprocess import DetectedRows, placed
from runtime.images.preprocess import InputGeometry
from runtime.parity.instances import instance_agreement
from runtime.results_instances import InstanceSegmentation
from runtime.tasks import Context, Task, TaskTraits
from runtime.tasks.detect import DetectionSettings, DetectionTask, settings_from

__all__ = [
    "BOXES",
    "POLYGONS",
    "SCORES",
    "TRAITS",
    "DetectionSettings",
    "InstanceTask",
    "agreement",
    "open_task",
    "settings_from",
]

SCORES, BOXES, POLYGONS = "outline/scores", "outline/boxes", "outline/polygons"
"""The names of the outputs among those of all graphs."""

MIN_VERTICES = 3

# As of detection, whose networks these are.
TRAITS = TaskTraits(InstanceSegmentation, enrolment="nothing", max_drop=0.01, float_first=("depthwise", "last"))


def open_task(context: Context) -> Task:
    return InstanceTask(context)


def agreement(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> Decisions | None:
    """The average precision of the engine's boxes and masks, see :mod:`runtime.parity.instances`."""
    if not {SCORES, BOXES, POLYGONS} <= set(actual):
        return None
    first, second = ((arrays[SCORES], arrays[BOXES], arrays[POLYGONS]) for arrays in (reference, actual))
    return instance_agreement(first, second)


class InstanceTask(DetectionTask):
    """Graph ``outline``: ``image`` -> ``scores``, ``boxes`` and ``polygons``."""

    GRAPH: ClassVar[str] = "outline"

    def expected_outputs(self, spec: Graph, labels: tuple[str, ...]) -> tuple[tuple[TensorSpec, ...], str]:
        outputs, words = super().expected_outputs(spec, labels)
        rows, vertices = outputs[0].shape[1:-1], spec.outputs[-1].shape[2:3]
        least = tuple(max(number, MIN_VERTICES) if isinstance(number, int) else number for number in vertices)
        polygons = TensorSpec("polygons", "float32", ("N", *rows, *least, 2))
        return (*outputs, polygons), f"{words}, and 'polygons', float32 (N, A, V, 2), V from {MIN_VERTICES}"

    def result_of(
        self, kept: DetectedRows, outputs: Mapping[str, Array], geometry: InputGeometry, size: tuple[int, int]
    ) -> InstanceSegmentation:
        found = super().result_of(kept, outputs, geometry, size)
        polygons = placed(outputs["polygons"][kept.rows], geometry=geometry, size=size)
        self.require_numbers("polygons", polygons)
        return InstanceSegmentation(
            found.boxes_xyxy, found.scores, found.labels, found.class_ids, polygons=polygons, size=size
        )
