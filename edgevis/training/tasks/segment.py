"""Segmentation of one kind of object: from boxes alone, by the multiple-instance baseline, or from masks.

Data: a folder or zip with ``images/`` and either ``instances/`` and ``boxes_xyxy.json``, or ``masks/``, in which all
that is not 0 is the object; ``index.csv`` (``stem``, ``split``, and ``volume`` for slices), see
:mod:`edgevis.data.mask_split`. With ``supervision`` of ``boxes`` or ``mil``, no mask of a training image reaches the
loss: only the boxes around it do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevis.data import InstanceImages, MaskedImages, boxes_from_class_ids
from edgevis.data.draw import below, draw_at
from edgevis.data.leakage import SplitCheck
from edgevis.data.mask_split import HELD_DRAW, TEST_DRAW, split_masks
from edgevis.losses import BoxTightnessLoss, MILBaselineLoss
from edgevis.metrics import dice_per_volume
from edgevis.models.recipe import MaskRecipe, Recipe, recipe_of
from edgevis.training.finite import require_finite
from edgevis.training.images import resized
from edgevis.training.objective import Batch, Evaluation, Measured
from edgevis.training.pictures import RIGHT, painted
from edgevis.training.precision import in_float32
from edgevis.training.teacher import Teacher
from runtime.arrays import Array
from runtime.errors import InputError
from runtime.images import Image
from runtime.preprocess import Preprocessor
from runtime.spec import Deployment

_PREDICT_BATCH = 8
_SHOWN = 6
_TRAIN_DRAW, _VIEW_DRAW = range(max(TEST_DRAW, HELD_DRAW) + 1, 4)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image with what is known of it.

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


def objective(
    data: Path,
    recipe: Recipe,
    deployment: Deployment,
    *,
    options: Mapping[str, int | str],
    seed: int,
    teacher: Teacher | None = None,
    check: SplitCheck | None = None,
) -> MaskObjective:
    """See :class:`edgevis.training.objective.Task`."""
    own = recipe_of(MaskRecipe, recipe)
    if options.get("classes", 1) != 1:
        raise InputError(f"classes is {options['classes']!r}; training knows one kind of object: leave the option out")
    from_boxes = own.supervision != "masks"
    split = split_masks(data, held_out=own.held_out, from_boxes=from_boxes, seed=seed, check=check or SplitCheck())
    examples = _examples(split.data)
    return MaskObjective(
        examples,
        split.train,
        split.validation,
        (examples, split.test),
        own,
        deployment,
        data=data.name,
        seed=seed,
        notes=split.notes,
    )


class MaskObjective:
    """See :class:`edgevis.training.objective.Objective`."""

    def __init__(
        self,
        examples: Examples,
        trained: Sequence[int],
        validation: Sequence[int],
        test: tuple[Examples, Sequence[int]],
        recipe: MaskRecipe,
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
    def steps_per_epoch(self) -> int:
        return self._recipe.steps_per_epoch or max(1, len(self._trained) // self._recipe.batch)

    def criterion(self) -> nn.Module:
        recipe = self._recipe
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
        logits: Tensor = model(batch["image"]).float()
        if self._recipe.supervision == "masks":
            return {"masks": in_float32(criterion, logits, batch["mask"])}
        return {self._recipe.supervision: in_float32(criterion, logits.sigmoid(), batch["boxes"])}

    def validate(self, model: nn.Module) -> Evaluation | None:
        if not self._validation:
            return None
        where = "training images set aside"
        if self._recipe.supervision == "masks":
            return Evaluation(where, self._dice(model, self._examples, self._validation)[0])
        # Who trains with boxes has no masks: they must not choose the checkpoint either.
        device = next(model.parameters()).device
        fits: list[float] = []
        for place in self._validation:
            example = self._example(place)
            batch = torch.from_numpy(self._preprocess([example.image])).to(device)
            logits = model(batch).float().cpu().numpy()
            require_finite(logits, "the model's logits")
            found = logits[0, 0] > 0
            fits += [box_fit(found, box) for box in example.boxes.tolist()]
        return Evaluation(where, {"box fit": Measured(float(np.mean(fits)) if fits else 0.0)})

    def test(self, model: nn.Module) -> Evaluation | None:
        test, places = self._test
        if not places:
            return None
        figures, picture = self._dice(model, test, places)
        return Evaluation("validation split", figures, {"masks": picture})

    def _example(self, place: int) -> Example:
        """A training example at the network's size."""
        if place not in self._kept:
            spec = self._preprocess.spec
            self._kept[place] = fitted(self._examples.read(place), spec.height, spec.width)
        return self._kept[place]

    def _dice(self, model: nn.Module, examples: Examples, places: Sequence[int]) -> tuple[dict[str, Measured], Image]:
        device = next(model.parameters()).device
        found: list[Array] = []
        wanted: list[Array] = []
        shown: list[Image] = []
        for start in range(0, len(places), _PREDICT_BATCH):
            chosen = [examples.read(place) for place in places[start : start + _PREDICT_BATCH]]
            batch = torch.from_numpy(self._preprocess([example.image for example in chosen])).to(device)
            logits = model(batch).float().cpu()
            require_finite(logits.numpy(), "the model's logits")
            for example, row in zip(chosen, logits, strict=True):
                full = F.interpolate(row[None], example.mask.shape, mode="bilinear", align_corners=False)[0, 0]
                found.append((full > 0).numpy())
                wanted.append(example.mask)
                if len(shown) < _SHOWN:
                    shown.append(_drawn(example, found[-1]))
        volumes = [examples.volumes[place] for place in places]
        values = tuple(dice_per_volume(found, wanted, volumes).values())
        return {"Dice": Measured(float(np.mean(values)), values)}, np.hstack(shown)


def box_fit(found: Array, box: Sequence[int]) -> float:
    """How tightly a box holds what was found near it: the IoU of both boxes, 0 where nothing was found.

    Args:
        found: (H, W) bool.
        box: x1, y1, x2, y2, inclusive. What lies within a quarter of its sides around it counts.
    """
    x1, y1, x2, y2 = box
    margin_x, margin_y = (x2 - x1 + 1) // 4 + 1, (y2 - y1 + 1) // 4 + 1
    left, top = max(x1 - margin_x, 0), max(y1 - margin_y, 0)
    near = found[top : y2 + margin_y + 1, left : x2 + margin_x + 1]
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    if not len(rows):
        return 0.0
    u1, v1, u2, v2 = left + columns[0], top + rows[0], left + columns[-1], top + rows[-1]
    shared = max(0, min(x2, u2) - max(x1, u1) + 1) * max(0, min(y2, v2) - max(y1, v1) + 1)
    union = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1) - shared
    return float(shared / union)


def fitted(example: Example, height: int, width: int) -> Example:
    """The example stretched to that size; a box keeps at least one pixel."""
    rows, columns = example.mask.shape
    image = resized(example.image, height, width)
    mask = cv2.resize(example.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    scale = np.array([width / columns, height / rows] * 2)
    # Ends are pixels: the box reaches from the left edge of the first to the right edge of the last.
    edges = (example.boxes + np.array([0, 0, 1, 1])) * scale
    first = np.minimum(np.floor(edges[:, :2] + 0.5), [width - 1, height - 1])
    last = np.maximum(np.floor(edges[:, 2:] + 0.5) - 1, first)
    return Example(image, mask, np.concatenate((first, last), axis=1).astype(np.int64))


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


def _drawn(example: Example, found: Array, side: int = 192) -> Image:
    """What was found in green, the outline of what is true in white."""
    picture = painted(example.image, found, RIGHT, strength=0.5)
    contours, _ = cv2.findContours(example.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    scale = side / max(picture.shape[:2])
    picture = resized(picture, *(max(1, round(size * scale)) for size in picture.shape[:2]))
    cv2.drawContours(picture, [np.round(contour * scale).astype(np.int32) for contour in contours], -1, (255,) * 3, 1)
    canvas = np.full((side, side, 3), 255, np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    return canvas
