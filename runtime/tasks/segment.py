"""Segmentation into classes that were trained: one graph ``segment``, a map of logits for each class.

``postprocess`` of the deployment holds :class:`SegmentationSettings`. Classes are independent of each other: a pixel
may reach the threshold of none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from runtime.bundle.manifest import Decisions
from runtime.bundle.spec import Graph, TensorSpec
from runtime.common.arrays import Array
from runtime.images.decode import Image
from runtime.images.resize import rows_linear
from runtime.parity.compare import mask_agreement
from runtime.results import Segmentation
from runtime.tasks import Context, Result, SingleGraph, Task, TaskTraits
from runtime.tasks._fixed import FixedLabelsTask, checked_threshold, labels_from, share_from
from runtime.tasks._maps import probability_of, segmentation_of, size_of, stretched, strips
from runtime.tasks._timing import StageTimer

_LOGITS = "segment/logits"

TRAITS = TaskTraits(
    Segmentation,
    enrolment="nothing",
    single_graph=SingleGraph("segment", "logits", ("classes", "height", "width")),
)


@dataclass(frozen=True, slots=True)
class SegmentationSettings:
    """The settings of a model that was trained for its classes.

    Attributes:
        labels: One name for each class, in the order of the logits.
        threshold: The probability, 0..1, from which a pixel counts.
    """

    labels: tuple[str, ...]
    threshold: float = 0.5


def open_task(context: Context) -> Task:
    return SegmentationTask(context)


def agreement(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> Decisions | None:
    """Mask IoU of the logits, (N, classes, h, w)."""
    return mask_agreement(reference[_LOGITS], actual[_LOGITS]) if _LOGITS in actual else None


class SegmentationTask(FixedLabelsTask):
    """Graph ``segment``: ``image`` -> ``logits`` (N, classes, h, w)."""

    GRAPH: ClassVar[str] = "segment"
    MAKES: ClassVar[str] = "segmentation makes maps"

    def __init__(self, context: Context) -> None:
        stretched(context.deployment.preprocess)
        settings = settings_from(context.deployment.postprocess)
        self._declared = self._threshold = settings.threshold
        super().__init__(context, settings.labels)

    def expected_outputs(self, spec: Graph, labels: tuple[str, ...]) -> tuple[tuple[TensorSpec, ...], str]:
        height, width = (*spec.outputs[0].shape[2:4], "h", "w")[:2]
        logits = TensorSpec("logits", "float32", ("N", len(labels), height, width))
        maps = f"'logits', float32 (N, {len(labels)}, h, w), one map for each of the labels {', '.join(labels)}"
        return (logits,), maps

    @property
    def threshold(self) -> float:
        return self._threshold

    def set_threshold(self, score: float | None) -> None:
        self._threshold = self._declared if score is None else checked_threshold(score)

    def predict(self, images: Sequence[Image], *, top_k: int) -> list[Result]:
        return [result for batch in self.batches(images) for result in self._predict(batch)]

    def _predict(self, images: Sequence[Image]) -> list[Result]:
        timer = StageTimer()
        tensor = self._preprocess(images)
        timer.end("preprocess")
        logits = self._session.run({"image": tensor})["logits"]
        timer.end("inference")
        results = [
            segmentation_from_logits(maps, size_of(image), labels=self.gallery.labels, threshold=self._threshold)
            for maps, image in zip(logits, images, strict=True)
        ]
        timer.end("postprocess")
        speed_ms = timer.speed_ms(len(images))
        return [replace(result, speed_ms=speed_ms) for result in results]


def segmentation_from_logits(
    logits: Array, size: tuple[int, int], *, labels: tuple[str, ...], threshold: float
) -> Segmentation:
    """The result of one image from its logits; training's evaluation uses it, too.

    The image was resized with OpenCV's bilinear filter, so that its map goes back through the same.

    Args:
        logits: (classes, h, w) float32.
        size: The image's (H, W).
        labels: One name for each class.
        threshold: The probability from which a pixel counts, 0..1.
    """
    height, width = size
    small = [probability_of(plane) for plane in logits]
    parts = strips(size, len(logits))

    def segmented() -> Iterator[tuple[slice, list[npt.NDArray[np.bool_]], list[npt.NDArray[np.float32]]]]:
        wide = [] if len(parts) == 1 else [_fitted(plane, (plane.shape[0], width)) for plane in small]
        for rows in parts:
            probabilities = [rows_linear(plane, height, rows) for plane in wide] or [
                _fitted(plane, size) for plane in small
            ]
            yield rows, [plane >= np.float32(threshold) for plane in probabilities], probabilities

    return segmentation_of(size, labels, segmented())


def _fitted(plane: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    height, width = size
    if plane.shape == (height, width):
        return plane
    return np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def settings_from(postprocess: Mapping[str, Any]) -> SegmentationSettings:
    """Reads a manifest's ``postprocess``: ``labels`` and, optionally, ``threshold``.

    Raises:
        SchemaError: The labels are not distinct names, or the threshold is not a probability.
    """
    return SegmentationSettings(labels_from(postprocess), share_from(postprocess, "threshold", 0.5))
