"""What training to find objects has in common, whether their boxes or their outlines are learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgevis.data.detection_split import DetectionSplit, split_detection
from edgevis.data.image_split import HELD_DRAW, TEST_DRAW
from edgevis.metrics.average_precision import AveragePrecision, require_pycocotools
from edgevis.models.recipe_detection import ObjectRecipe
from edgevis.training.finite import require_finite
from edgevis.training.images import resized
from edgevis.training.task import Evaluation, MetricValue, TaskRequest
from edgevis.training.visualize import GIVEN, RIGHT
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.detection.postprocess import DetectedBoxes
from runtime.images.decode import Image
from runtime.images.preprocess import InputGeometry, Preprocessor
from runtime.tasks.detect import settings_from

EVALUATED_SCORE = 0.001
"""The least score of detections that average precision is computed from."""

_PREDICT_BATCH = 8
ORDER_DRAW, VIEW_DRAW, PSEUDO_DRAW = range(max(TEST_DRAW, HELD_DRAW) + 1, 5)
"""What the seed draws here, beside what it draws of the splits."""

SHOWN = 6
"""The images that an evaluation's picture shows."""

_SHOWN_SCORE, _SHOWN_SIDE = 0.3, 320


def split_of(request: TaskRequest, recipe: ObjectRecipe) -> DetectionSplit:
    """The images of a training, as its recipe, here of its own type, divides them.

    Raises:
        MissingDependencyError: pycocotools, by which they are evaluated, is not installed.
        SourceError, InputError: As of :func:`edgevis.data.detection_split.split_detection`.
    """
    require_pycocotools()
    return split_detection(
        request.data,
        classes=recipe.classes,
        where=recipe.where,
        held_out=recipe.held_out,
        seed=request.seed,
        check=request.check,
    )


class ObjectTask(ABC):
    """A part of :class:`edgevis.training.task.TrainingTask`. Subclasses evaluate.

    Args:
        split: The images.
        recipe: Of the training.
        deployment: The model's.
        data: The data's name, for the report.
        seed: Of batches.
        picture: What the evaluation's picture is called.
    """

    def __init__(
        self,
        split: DetectionSplit,
        recipe: ObjectRecipe,
        deployment: Deployment,
        *,
        data: str,
        seed: int,
        picture: str,
    ) -> None:
        self._split, self._seed, self._name, self._picture = split, seed, data, picture
        self._batch, self._steps = recipe.batch, recipe.steps_per_epoch
        self._deployment = deployment
        self._preprocess = Preprocessor(deployment.preprocess)
        self._settings = replace(settings_from(deployment.postprocess), score=EVALUATED_SCORE)

    @property
    def model_options(self) -> Mapping[str, int | str]:
        classes = self._split.data.classes
        return {"num_classes": len(classes), "labels": ",".join(classes)}

    @property
    def data(self) -> Mapping[str, object]:
        split = self._split
        return {
            "source": self._name,
            "classes": list(split.data.classes),
            "training images": len(split.train),
            "training boxes": sum(split.data.labels[place].objects for place in split.train),
            "validation images": len(split.validation),
            "test images": len(split.test),
            **split.notes,
        }

    @property
    def evaluation_images(self) -> tuple[int, int]:
        """See :class:`edgevis.training.remaining.CountedEvaluations`."""
        return len(self._split.validation), len(self._split.test)

    @property
    def drawn_images(self) -> int:
        """The images of an epoch."""
        return len(self._split.train)

    @property
    def steps_per_epoch(self) -> int:
        return self._steps or max(1, self.drawn_images // self._batch)

    def validate(self, model: nn.Module) -> Evaluation | None:
        if not self._split.validation:
            return None
        figures, _ = self.evaluated(model, self._split.validation)
        return Evaluation("training images set aside", figures)

    def test(self, model: nn.Module) -> Evaluation | None:
        if not self._split.test:
            return None
        figures, picture = self.evaluated(model, self._split.test)
        return Evaluation("test images", figures, {self._picture: picture})

    def outputs(
        self, model: nn.Module, graph: str, read: Callable[[int], Image], places: Sequence[int]
    ) -> Iterator[tuple[tuple[Array, ...], InputGeometry, tuple[int, int]]]:
        """What a graph makes of each image: its rows of the outputs, float32, scores first; where it lies; (H, W).

        Args:
            model: The model, on any device.
            graph: The name of its method.
            read: From a position to the image.
            places: Positions of the images.

        Raises:
            TrainingError: A score is not finite.
        """
        device = next(model.parameters()).device
        for start in range(0, len(places), _PREDICT_BATCH):
            images = [read(place) for place in places[start : start + _PREDICT_BATCH]]
            tensors = getattr(model, graph)(torch.from_numpy(self._preprocess(images)).to(device))
            arrays = [tensor.float().cpu().numpy() for tensor in tensors]
            require_finite(arrays[0], "the model's scores")
            for image, *rows in zip(images, *arrays, strict=True):
                size = (image.shape[0], image.shape[1])
                yield tuple(rows), self._preprocess.geometry(size), size

    @abstractmethod
    def evaluated(self, model: nn.Module, places: Sequence[int]) -> tuple[Mapping[str, MetricValue], Image]:
        """The figures by name on some images, and the first of them with what was found."""


def figures_of(result: AveragePrecision, prefix: str = "") -> dict[str, MetricValue]:
    """AP and AP50 by their names, with ``prefix`` in front."""
    return {
        f"{prefix}AP": MetricValue(result.value, result.samples),
        f"{prefix}AP50": MetricValue(result.at_50, result.samples_50),
    }


def drawn_boxes(image: Image, annotated: NDArray[np.float32], detected: DetectedBoxes) -> Image:
    """The image at one height, with annotated boxes (I, 4) in grey and detections in green."""
    scale = _SHOWN_SIDE / image.shape[0]
    picture = resized(image, _SHOWN_SIDE, max(1, round(image.shape[1] * scale)))
    for table, colour in ((annotated, GIVEN), (detected.boxes[detected.scores >= _SHOWN_SCORE], RIGHT)):
        for x1, y1, x2, y2 in np.rint(table * scale).astype(int).tolist():
            cv2.rectangle(picture, (x1, y1), (x2, y2), colour, 2)
    return picture
