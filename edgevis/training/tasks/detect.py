"""Detection: boxes of objects of the classes that the data name.

Data: COCO's JSON, PASCAL VOC's folders, or tables of boxes or masks, see :mod:`edgevis.data.detection_split`. A model
offers ``heads`` (the raw maps) and ``detect`` (the exported graph); its options are ``num_classes`` and ``labels``.
The evaluation places and suppresses boxes by the runtime's own code, at a low threshold.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgevis.data.detection import BoxLabels
from edgevis.data.detection_split import DetectionSplit
from edgevis.data.image_split import is_blank
from edgevis.data.leakage import Side, SplitCheck
from edgevis.data.pseudo_labelled import read_pseudo_labelled
from edgevis.data.rng import below, draw_at
from edgevis.losses import EfficientDetLoss, YOLOXLoss
from edgevis.metrics.average_precision import Detected, average_precision
from edgevis.models.recipe import is_custom_loss, recipe_of
from edgevis.models.recipe_detection import DetectionRecipe
from edgevis.training.box_images import BoxImages
from edgevis.training.box_views import BoxView, flipped_view, mosaic, random_scale_crop
from edgevis.training.custom_loss import custom_loss, custom_terms
from edgevis.training.object_task import (
    ORDER_DRAW,
    PSEUDO_DRAW,
    SHOWN,
    VIEW_DRAW,
    ObjectTask,
    drawn_boxes,
    figures_of,
    split_of,
)
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, MetricValue, TaskRequest
from edgevis.training.views import color_jitter, random_degradation
from runtime.bundle.spec import Deployment
from runtime.detection.postprocess import DetectedBoxes, detected_boxes
from runtime.images.decode import Image


def training_task(request: TaskRequest) -> DetectionTrainingTask:
    """See :class:`edgevis.training.task.TaskFactory`."""
    recipe = recipe_of(DetectionRecipe, request.recipe)
    split = split_of(request, recipe)
    return DetectionTrainingTask(split, recipe, request.deployment, data=request.data.name, seed=request.seed)


class DetectionTrainingTask(ObjectTask):
    """See :class:`edgevis.training.task.TrainingTask`; of a model it calls ``heads`` and ``detect``."""

    def __init__(
        self, split: DetectionSplit, recipe: DetectionRecipe, deployment: Deployment, *, data: str, seed: int
    ) -> None:
        super().__init__(split, recipe, deployment, data=data, seed=seed, picture="detections")
        self._recipe = recipe
        self._images = BoxImages(split.data, split.train, draw=(seed, ORDER_DRAW))
        self._pseudo: BoxImages | None = None
        self._pseudo_name = ""

    def with_pseudo_labels(self, path: Path, check: SplitCheck) -> DetectionTrainingTask:
        """See :class:`edgevis.training.task.SelfTrainingTask`.

        A share of each batch, ``pseudo_share`` of the recipe, is then drawn from these pictures, degraded.
        """
        recipe, split = self._recipe, self._split
        data = read_pseudo_labelled(path, split.data.classes, score=recipe.pseudo_score, ignore=recipe.ignore_score)
        sides = [
            Side(name, images.files, [images.names[place] for place in places])
            for name, images, places in (
                ("pseudo-labels", data, range(len(data))),
                ("test", split.data, (*split.test, *split.validation)),
            )
        ]
        leaks = check.refuse(path, check.shared(sides, blank=is_blank)) if len(sides[1].images) else ()
        if leaks:
            known = split.notes.get("leakage", ())
            notes = {**split.notes, "leakage": [*(known if isinstance(known, list) else ()), *leaks]}
            split = replace(split, notes=notes)
        task = DetectionTrainingTask(split, recipe, self._deployment, data=self._name, seed=self._seed)
        task._pseudo = BoxImages(data, range(len(data)), draw=(self._seed, PSEUDO_DRAW))
        task._pseudo_name = path.name
        return task

    @property
    def data(self) -> Mapping[str, object]:
        return {**super().data, **self._pseudo_data()}

    @property
    def drawn_images(self) -> int:
        return len(self._images) + len(self._pseudo or ())

    def criterion(self) -> nn.Module:
        recipe = self._recipe
        if is_custom_loss(recipe.loss):
            return custom_loss(recipe.loss)
        if recipe.loss == "efficientdet":
            return EfficientDetLoss(assignment=recipe.assignment)
        return YOLOXLoss()

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        draw = draw_at(self._seed, VIEW_DRAW, epoch, step, rank)
        views = []
        for images, count in self._rows():
            first = step * count
            views += [self._view(images, images.drawn(epoch, first + row, rank), draw, epoch) for row in range(count)]
        return {
            "image": torch.from_numpy(self._preprocess([view.image for view in views])),
            "targets": targets_of([view.labels for view in views]),
        }

    def loss(self, model: Any, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        image = batch["image"]
        rows = raw_rows(model.heads(image), classes=len(self._split.data.classes))
        if is_custom_loss(self._recipe.loss):
            return custom_terms(criterion, rows, batch["targets"])
        if isinstance(criterion, YOLOXLoss):
            criterion.l1 = epoch >= self._recipe.epochs - self._recipe.l1_epochs
        terms: dict[str, Tensor] = in_float32(criterion, rows, batch["targets"], size=tuple(image.shape[2:]))
        return terms

    def _pseudo_data(self) -> dict[str, object]:
        if self._pseudo is None:
            return {}
        return {
            "pseudo-labels": self._pseudo_name,
            "pseudo-labelled images": len(self._pseudo),
            "pseudo-labelled boxes": sum(labels.objects for labels in self._pseudo.data.labels),
        }

    def _rows(self) -> list[tuple[BoxImages, int]]:
        """The images of a batch: where they come from, and how many."""
        count = self._recipe.batch
        if self._pseudo is None:
            return [(self._images, count)]
        pseudo = round(count * self._recipe.pseudo_share)
        return [(self._images, count - pseudo), (self._pseudo, pseudo)]

    def _view(self, images: BoxImages, place: int, draw: random.Random, epoch: int) -> BoxView:
        recipe, spec = self._recipe, self._preprocess.spec
        view, scale = images[place], recipe.scale
        if recipe.mosaic and epoch < recipe.epochs - recipe.l1_epochs and draw.random() < recipe.mosaic:
            others = [images[images.places[below(draw, len(images))]] for _ in range(3)]
            view, scale = mosaic([view, *others], draw, spec), tuple(2 * factor for factor in recipe.scale)
        view = random_scale_crop(view, draw, spec, scale=scale, visible=recipe.visible)
        view = flipped_view(view, draw) if recipe.flip else view
        image = color_jitter(view.image, draw, strength=recipe.jitter)
        if images is self._pseudo:
            image = random_degradation(image, draw, strength=recipe.degrade)
        return BoxView(image, view.labels)

    def evaluated(self, model: nn.Module, places: Sequence[int]) -> tuple[Mapping[str, MetricValue], Image]:
        truths: list[BoxLabels] = []
        detections: list[Detected] = []
        shown: list[Image] = []
        for place, detected in zip(places, self._detections(model, places), strict=True):
            view = self._images[place]
            truths.append(view.labels)
            detections.append(detected)
            if len(shown) < SHOWN:
                shown.append(drawn_boxes(view.image, view.labels.boxes[~view.labels.ignored], detected))
        result = average_precision(truths, detections, classes=len(self._split.data.classes))
        return figures_of(result), np.hstack(shown)

    def _detections(self, model: nn.Module, places: Sequence[int]) -> Iterator[DetectedBoxes]:
        """What the predictor finds, at a low threshold, of each image."""
        rows = self.outputs(model, "detect", lambda place: self._images[place].image, places)
        for (scores, boxes), geometry, size in rows:
            yield detected_boxes(scores, boxes, self._settings, geometry=geometry, size=size)


def targets_of(labels: Sequence[BoxLabels]) -> Tensor:
    """(M, 8) float32: the boxes of a batch as :data:`edgevis.losses.TARGET_COLUMNS` describes them."""
    rows = [
        np.column_stack(
            [np.full(len(part), number), part.classes, part.boxes, part.weights, part.ignored.astype(np.float32)]
        )
        for number, part in enumerate(labels)
    ]
    return torch.from_numpy(np.concatenate(rows).astype(np.float32))


def raw_rows(heads: Any, *, classes: int) -> Tensor:
    """A model's raw maps as rows (B, A, K): box code first, classes last; levels in order, places row by row.

    Args:
        heads: Maps (B, 5 + C, h, w) of a YOLOX; or the class maps (B, a C, h, w) and the box maps (B, a 4, h, w) of an
            EfficientDet with a anchors at each place, anchor major.
        classes: C.
    """
    if isinstance(heads[0], Tensor):
        return torch.cat([x.flatten(2).transpose(1, 2) for x in heads], 1)
    parts = [
        torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, width) for x in maps], 1)
        for maps, width in zip(heads, (classes, 4), strict=True)
    ]
    return torch.cat(parts[::-1], 2)
