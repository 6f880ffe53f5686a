"""Instance segmentation: outlines of objects of the classes that the data name.

Data: as of detection, with the pixels of each object, see :mod:`edgevis.data.instances`. A model offers ``heads`` (the
raw maps, see :class:`edgevis.layers.polar_head.PolarMaps`) and ``outline`` (the exported graph); its options are
``num_classes`` and ``labels``. The evaluation places, suppresses and fills outlines by the runtime's own code, at a low
threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgevis.data.detection import BoxLabels
from edgevis.data.detection_split import DetectionSplit
from edgevis.data.instances import Instances, LabelledInstances
from edgevis.data.polar_targets import BACKGROUND, IGNORED, RayEnds, outer_contour, polar_targets
from edgevis.data.rng import draw_at
from edgevis.layers.polar_code import polar_points
from edgevis.losses import PolarMaskLoss
from edgevis.metrics.average_precision import (
    EncodedMask,
    InstanceMasks,
    average_precision,
    encoded_mask,
)
from edgevis.models.recipe import is_custom_loss, recipe_of
from edgevis.models.recipe_detection import InstanceRecipe
from edgevis.training.custom_loss import custom_loss, custom_terms
from edgevis.training.instance_images import InstanceStore, random_view
from edgevis.training.object_task import ORDER_DRAW, SHOWN, VIEW_DRAW, ObjectTask, drawn_boxes, figures_of, split_of
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, MetricValue, TaskRequest
from edgevis.training.views import color_jitter
from runtime.bundle.spec import Deployment
from runtime.detection.postprocess import DetectedBoxes, detected_rows, placed
from runtime.images.decode import Image
from runtime.images.polygons import polygon_mask


def training_task(request: TaskRequest) -> InstanceTrainingTask:
    """See :class:`edgevis.training.task.TaskFactory`."""
    recipe = recipe_of(InstanceRecipe, request.recipe)
    split = split_of(request, recipe)
    return InstanceTrainingTask(split, recipe, request.deployment, data=request.data.name, seed=request.seed)


class InstanceTrainingTask(ObjectTask):
    """See :class:`edgevis.training.task.TrainingTask`; of a model it calls ``heads`` and ``outline``."""

    def __init__(
        self, split: DetectionSplit, recipe: InstanceRecipe, deployment: Deployment, *, data: str, seed: int
    ) -> None:
        super().__init__(split, recipe, deployment, data=data, seed=seed, picture="instances")
        self._recipe = recipe
        instances = LabelledInstances(split.annotated, split.data.classes)
        self._images = InstanceStore(instances, split.train, draw=(seed, ORDER_DRAW))
        spec = deployment.preprocess
        points, strides = polar_points((spec.height, spec.width))
        self._points, self._strides = points.numpy(), strides.numpy()

    def criterion(self) -> nn.Module:
        return custom_loss(self._recipe.loss) if is_custom_loss(self._recipe.loss) else PolarMaskLoss()

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        recipe, spec = self._recipe, self._preprocess.spec
        draw = draw_at(self._seed, VIEW_DRAW, epoch, step, rank)
        images, targets = [], []
        for row in range(recipe.batch):
            view = self._images[self._images.drawn(epoch, step * recipe.batch + row, rank)]
            view = random_view(view, draw, spec, scale=recipe.scale, visible=recipe.visible, flip=recipe.flip)
            images.append(color_jitter(view.image, draw, strength=recipe.jitter))
            targets.append(targets_of(view, self._points, self._strides, ends=recipe.rays))
        return {
            "image": torch.from_numpy(self._preprocess(images)),
            "targets": torch.from_numpy(np.stack(targets)),
        }

    def loss(self, model: Any, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        rows = model.heads(batch["image"]).rows()
        if is_custom_loss(self._recipe.loss):
            return custom_terms(criterion, rows, batch["targets"])
        terms: dict[str, Tensor] = in_float32(criterion, rows, batch["targets"])
        return terms

    def evaluated(self, model: nn.Module, places: Sequence[int]) -> tuple[Mapping[str, MetricValue], Image]:
        truths: list[BoxLabels] = []
        masks: list[list[EncodedMask]] = []
        found: list[_Found] = []
        shown: list[Image] = []
        for place, detected in zip(places, self._found(model, places), strict=True):
            view = self._images[place]
            labels, numbers = view.labels()
            truths.append(labels)
            masks.append([encoded_mask(view.ids == number) for number in numbers.tolist()])
            found.append(detected)
            if len(shown) < SHOWN:
                shown.append(drawn_boxes(view.image, labels.boxes[~labels.ignored], detected.boxes))
        figures: dict[str, MetricValue] = {}
        for kind, encoded in (("mask", InstanceMasks(masks, [item.masks for item in found])), ("box", None)):
            result = average_precision(
                truths, [item.boxes for item in found], classes=len(self._split.data.classes), masks=encoded
            )
            figures |= figures_of(result, f"{kind} ")
        return figures, np.hstack(shown)

    def _found(self, model: nn.Module, places: Sequence[int]) -> Iterator[_Found]:
        """What the predictor finds, at a low threshold, in each image."""
        rows = self.outputs(model, "outline", lambda place: self._images[place].image, places)
        for (scores, boxes, polygons), geometry, size in rows:
            kept = detected_rows(scores, boxes, self._settings, geometry=geometry, size=size)
            outlines = placed(polygons[kept.rows], geometry=geometry, size=size)
            yield _Found(kept.detected, [encoded_mask(polygon_mask(outline, size)) for outline in outlines])


class _Found(NamedTuple):
    """The detections of an image and their masks."""

    boxes: DetectedBoxes
    masks: list[EncodedMask]


def targets_of(
    view: Instances, points: NDArray[np.float32], strides: NDArray[np.float32], *, ends: RayEnds = "pixels"
) -> NDArray[np.float32]:
    """(P, 41) float32: what each point learns, see :func:`edgevis.data.polar_targets.polar_targets`.

    Points on ignored pixels that learn no object learn nothing.
    """
    labels, numbers = view.labels()
    contours, classes = [], []
    rows = (labels.boxes.astype(int), numbers, labels.classes, labels.ignored)
    for (x1, y1, x2, y2), number, label, ignored in zip(*(column.tolist() for column in rows), strict=True):
        if not ignored:
            contour = outer_contour((view.ids[y1:y2, x1:x2] == number).astype(np.uint8))
            contours.append(contour + np.array([x1, y1]))
            classes.append(label)
    targets = polar_targets(points, strides, contours, np.array(classes, np.int64), ends=ends)
    x, y = points.astype(int).T
    unseen = np.append(False, view.ignored)[view.ids[y, x]]
    targets[unseen & (targets[:, 0] == BACKGROUND), 0] = IGNORED
    return targets
