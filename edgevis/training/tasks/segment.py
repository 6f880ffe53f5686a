"""Segmentation of one kind of object: from boxes alone, by the multiple-instance baseline, or from masks.

Data: a folder or zip with ``images/`` and either ``instances/`` and ``boxes_xyxy.json``, or ``masks/``, in which all
that is not 0 is the object; ``index.csv`` (``stem``, ``split``, and ``volume`` for slices), see
:mod:`edgevis.data.mask_split`. With ``supervision`` of ``boxes`` or ``mil``, no mask of a training image reaches the
loss: only the boxes around it do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from edgevis.data import InstanceImages, MaskedImages, boxes_from_class_ids
from edgevis.data.image_split import HELD_DRAW, TEST_DRAW
from edgevis.data.mask_split import split_masks
from edgevis.data.rng import below, draw_at
from edgevis.layers.point_rend import PointLogits
from edgevis.losses import BoxTightnessLoss, MILBaselineLoss, point_rend_loss
from edgevis.metrics import boundary_iou_per_volume, box_fit_per_volume, dice_per_volume
from edgevis.metrics import box_fit as box_fit  # measured by scripts under this name
from edgevis.models.recipe import SegmentationRecipe, is_custom_loss, recipe_of
from edgevis.training.custom_loss import custom_loss, custom_terms
from edgevis.training.finite import require_finite
from edgevis.training.images import resized
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, Evaluation, MetricValue, PointTrainedModel, TaskRequest
from edgevis.training.visualize import RIGHT, painted
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor
from runtime.tasks.segment import segmentation_from_logits, settings_from

_PREDICT_BATCH = 8
_SHOWN = 6
_TRAIN_DRAW, _VIEW_DRAW = range(max(TEST_DRAW, HELD_DRAW) + 1, 4)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image with its annotations.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        mask: (H, W) bool: the object.
        boxes: (I, 4) int64: x1, y1, x2, y2, inclusive.
    """

    image: Image
    mask: Array
    boxes: Array


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Images by their number.

    Attributes:
        read: From a number to an example.
        volumes: For each number the volume that it is a slice of, or its own name.
    """

    read: Callable[[int], Example]
    volumes: tuple[str, ...]


def training_task(request: TaskRequest) -> SegmentationTrainingTask:
    """See :class:`edgevis.training.task.TaskFactory`."""
    recipe = recipe_of(SegmentationRecipe, request.recipe)
    if request.options.get("classes", 1) != 1:
        raise InputError(
            f"classes is {request.options['classes']!r}; training knows one kind of object: leave the option out"
        )
    from_boxes = recipe.supervision != "masks"
    split = split_masks(
        request.data, held_out=recipe.held_out, from_boxes=from_boxes, seed=request.seed, check=request.check
    )
    examples = _examples(split.data)
    return SegmentationTrainingTask(
        examples,
        split.train,
        split.validation,
        (examples, split.test),
        recipe,
        request.deployment,
        data=request.data.name,
        seed=request.seed,
        notes=split.notes,
    )


class SegmentationTrainingTask:
    """See :class:`edgevis.training.task.TrainingTask`."""

    def __init__(
        self,
        examples: Examples,
        trained: Sequence[int],
        validation: Sequence[int],
        test: tuple[Examples, Sequence[int]],
        recipe: SegmentationRecipe,
        deployment: Deployment,
        *,
        data: str,
        seed: int,
        notes: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self._notes = notes
        self._examples, self._trained, self._validation, self._test = examples, trained, validation, test
        self._recipe, self._seed, self._name = recipe, seed, data
        self._preprocess = Preprocessor(deployment.preprocess)
        settings = settings_from(deployment.postprocess)
        self._labels, self._threshold = settings.labels, settings.threshold
        self._kept: dict[int, Example] = {}

    @property
    def model_options(self) -> Mapping[str, int | str]:
        return {}

    @property
    def data(self) -> Mapping[str, object]:
        test, places = self._test
        return {
            "source": self._name,
            "supervision": self._recipe.supervision,
            "training images": len(self._trained),
            "validation images": len(self._validation),
            "test images": len(places),
            "test volumes": len({test.volumes[place] for place in places}),
            **self._notes,
        }

    @property
    def evaluation_images(self) -> tuple[int, int]:
        """See :class:`edgevis.training.remaining.CountedEvaluations`."""
        return len(self._validation), len(self._test[1])

    @property
    def steps_per_epoch(self) -> int:
        return self._recipe.steps_per_epoch or max(1, len(self._trained) // self._recipe.batch)

    def criterion(self) -> nn.Module:
        recipe = self._recipe
        if is_custom_loss(recipe.loss):
            return custom_loss(recipe.loss)
        if recipe.supervision == "boxes":
            return BoxTightnessLoss(
                recipe.angles, recipe.smooth_max, recipe.alpha, pairwise_weight=recipe.pairwise_weight
            )
        if recipe.supervision == "mil":
            return MILBaselineLoss(pairwise_weight=recipe.pairwise_weight)
        return nn.BCEWithLogitsLoss()

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        recipe = self._recipe
        draw = draw_at(self._seed, _TRAIN_DRAW, epoch, step, rank)
        views = draw_at(self._seed, _VIEW_DRAW, epoch, step, rank)
        images, masks, boxes = [], [], []
        for row in range(recipe.batch):
            example = self._example(self._trained[below(draw, len(self._trained))])
            if recipe.flip:
                example = flipped(example, columns=views.random() < 0.5, rows=views.random() < 0.5)
            images.append(example.image)
            masks.append(example.mask)
            boxes += [(row, 0, *box) for box in example.boxes.tolist()]
        batch = {"image": torch.from_numpy(self._preprocess(images))}
        if recipe.supervision == "masks":
            return {**batch, "mask": torch.from_numpy(np.stack(masks).astype(np.float32))[:, None]}
        return {**batch, "boxes": torch.tensor(boxes, dtype=torch.int64).reshape(-1, 6)}

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        points: PointLogits | None = None
        if isinstance(model, PointTrainedModel):
            logits, points = model.training_outputs(batch["image"])
        else:
            logits = model(batch["image"])
        terms = self._terms(criterion, logits.float(), batch)
        if points is None:
            return terms
        if "mask" not in batch:
            raise InputError(
                f"the model refines points, and supervision is {self._recipe.supervision!r}: boxes do not say where a "
                "border is; PointRend learns from masks (--set supervision=masks), or leave it out (--option points=0)"
            )
        return {**terms, "points": in_float32(point_rend_loss, *points, batch["mask"][:, 0])}

    def _terms(self, criterion: nn.Module, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        if is_custom_loss(self._recipe.loss):
            return custom_terms(criterion, logits, batch["mask" if self._recipe.supervision == "masks" else "boxes"])
        if self._recipe.supervision == "masks":
            return {"masks": in_float32(criterion, logits, batch["mask"])}
        return {self._recipe.supervision: in_float32(criterion, logits.sigmoid(), batch["boxes"])}

    def validate(self, model: nn.Module) -> Evaluation | None:
        if not self._validation:
            return None
        where = "training images set aside"
        if self._recipe.supervision == "masks":
            return Evaluation(where, self._overlap(model, self._examples, self._validation)[0])
        # Training from boxes has no masks: they must not choose the checkpoint either.
        pairs = [(mask, example.boxes) for example, mask in self._predictions(model, self._examples, self._validation)]
        volumes = [self._examples.volumes[place] for place in self._validation]
        fits = box_fit_per_volume([mask for mask, _ in pairs], [boxes for _, boxes in pairs], volumes)
        return Evaluation(where, {"box fit": MetricValue(float(np.mean(list(fits.values()))))})

    def test(self, model: nn.Module) -> Evaluation | None:
        test, places = self._test
        if not places:
            return None
        figures, picture = self._overlap(model, test, places)
        return Evaluation("validation split", figures, {"masks": picture})

    def _example(self, place: int) -> Example:
        """A training example at the network's size."""
        if place not in self._kept:
            self._kept[place] = fitted(self._examples.read(place), self._preprocess)
        return self._kept[place]

    def _predictions(
        self, model: nn.Module, examples: Examples, places: Sequence[int]
    ) -> Iterator[tuple[Example, Array]]:
        """Examples at their original size, and the predicted masks, (H, W) bool."""
        device = next(model.parameters()).device
        for start in range(0, len(places), _PREDICT_BATCH):
            chosen = [examples.read(place) for place in places[start : start + _PREDICT_BATCH]]
            batch = torch.from_numpy(self._preprocess([example.image for example in chosen])).to(device)
            logits = model(batch).float().cpu().numpy()
            require_finite(logits, "the model's logits")
            for example, maps in zip(chosen, logits, strict=True):
                result = segmentation_from_logits(
                    maps, example.mask.shape, labels=self._labels, threshold=self._threshold
                )
                yield example, result.mask

    def _overlap(
        self, model: nn.Module, examples: Examples, places: Sequence[int]
    ) -> tuple[dict[str, MetricValue], Image]:
        predictions: list[Array] = []
        targets: list[Array] = []
        shown: list[Image] = []
        for example, predicted in self._predictions(model, examples, places):
            predictions.append(predicted)
            targets.append(example.mask)
            if len(shown) < _SHOWN:
                shown.append(_drawn(example, predicted))
        volumes = [examples.volumes[place] for place in places]
        dice = dice_per_volume(predictions, targets, volumes)
        by_figure = {
            "Dice": dice,
            "IoU": {volume: value / (2 - value) for volume, value in dice.items()},
            "boundary IoU": boundary_iou_per_volume(predictions, targets, volumes),
        }
        figures = {name: MetricValue.mean_of(tuple(values.values())) for name, values in by_figure.items()}
        return figures, np.hstack(shown)


def fitted(example: Example, preprocess: Preprocessor) -> Example:
    """The example preprocessed to the network's size as a predictor does; a box keeps at least one pixel.

    Args:
        example: Of any size.
        preprocess: A model's; its images are stretched.
    """
    height, width = preprocess.spec.height, preprocess.spec.width
    rows, columns = example.mask.shape
    mask = cv2.resize(example.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    scale = np.array([width / columns, height / rows] * 2)
    # Ends are pixels: the box reaches from the left edge of the first to the right edge of the last.
    edges = (example.boxes + np.array([0, 0, 1, 1])) * scale
    first = np.minimum(np.floor(edges[:, :2] + 0.5), [width - 1, height - 1])
    last = np.maximum(np.floor(edges[:, 2:] + 0.5) - 1, first)
    boxes = np.concatenate((first, last), axis=1).astype(np.int64)
    return Example(preprocess.fit(example.image), mask, boxes)


def flipped(example: Example, *, columns: bool, rows: bool) -> Example:
    """The example mirrored."""
    image, mask, boxes = example.image, example.mask, example.boxes
    height, width = mask.shape
    if columns:
        image, mask = image[:, ::-1], mask[:, ::-1]
        boxes = np.stack((width - 1 - boxes[:, 2], boxes[:, 1], width - 1 - boxes[:, 0], boxes[:, 3]), axis=1)
    if rows:
        image, mask = image[::-1], mask[::-1]
        boxes = np.stack((boxes[:, 0], height - 1 - boxes[:, 3], boxes[:, 2], height - 1 - boxes[:, 1]), axis=1)
    return Example(np.ascontiguousarray(image), np.ascontiguousarray(mask), boxes)


def _examples(data: MaskedImages | InstanceImages) -> Examples:
    if isinstance(data, InstanceImages):
        instances = data

        def read(place: int) -> Example:
            image, ids, boxes = instances[place]
            return Example(image, ids > 0, boxes)

        return Examples(read, instances.volumes)
    masked = data

    def read_mask(place: int) -> Example:
        image, ids = masked[place]
        mask = ids > 0
        return Example(image, mask, boxes_from_class_ids(mask[None].astype(np.uint8))[:, 2:])

    return Examples(read_mask, masked.volumes)


def _drawn(example: Example, predicted: Array, side: int = 192) -> Image:
    """The predicted mask in green, the outline of the true mask in white."""
    picture = painted(example.image, predicted, RIGHT, strength=0.5)
    contours, _ = cv2.findContours(example.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    scale = side / max(picture.shape[:2])
    picture = resized(picture, *(max(1, round(size * scale)) for size in picture.shape[:2]))
    cv2.drawContours(picture, [np.round(contour * scale).astype(np.int32) for contour in contours], -1, (255,) * 3, 1)
    canvas = np.full((side, side, 3), 255, np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    return canvas
