"""The targets of detection losses, and the overlap of boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.errors import InputError

COLUMNS = ("image", "class", "x1", "y1", "x2", "y2", "weight", "ignored")
"""The columns of detection targets, (M, 8) float32, one row for each box.

``image`` is the position in the batch; ``class`` from 0; corners in pixels of the network's input, ends exclusive;
``weight`` 0..1, below 1 for pseudo-labels; ``ignored`` 1 for regions in which nothing counts as wrong, else 0.
"""


@dataclass(frozen=True, slots=True, eq=False)
class ImageTargets:
    """The targets of one image.

    Attributes:
        boxes: (G, 4) float32: x1, y1, x2, y2.
        classes: (G,) int64.
        weights: (G,) float32, 0..1.
        ignored: (R, 4) float32: regions.
    """

    boxes: Tensor
    classes: Tensor
    weights: Tensor
    ignored: Tensor


def targets_by_image(targets: Tensor, images: int, classes: int) -> list[ImageTargets]:
    """The targets of each image of a batch.

    Args:
        targets: (M, 8), see :data:`COLUMNS`.
        images: The batch's.
        classes: The model's.

    Raises:
        InputError: Not (M, 8), an image or class that is not there, or a box whose end is not behind its start.
    """
    if targets.ndim != 2 or targets.shape[1] != len(COLUMNS):
        raise InputError(f"targets have shape {tuple(targets.shape)}; allowed: (M, 8): {', '.join(COLUMNS)}")
    if len(targets) and not torch.compiler.is_compiling():
        image, label = targets[:, 0], targets[:, 1]
        if not bool(((image >= 0) & (image < images) & (label >= 0) & (label < classes)).all()):
            raise InputError(f"targets name an image or class beyond the batch's {images} or the model's {classes}")
        if not bool((targets[:, 4:6] > targets[:, 2:4]).all()):
            raise InputError("targets hold a box whose end is not behind its start; drop empty boxes")
    parts = []
    for number in range(images):
        rows = targets[targets[:, 0] == number]
        regions = rows[:, 7] > 0
        rows, ignored = rows[~regions], rows[regions, 2:6]
        parts.append(ImageTargets(rows[:, 2:6], rows[:, 1].long(), rows[:, 6], ignored))
    return parts


def intersections(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) areas that N and M boxes share; both xyxy."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    return (high - low).clamp(min=0).prod(2)


def areas(boxes: Tensor) -> Tensor:
    """(N,) areas of boxes (N, 4), xyxy."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) intersections over unions of N and M boxes, xyxy in continuous coordinates; 0 where both are empty."""
    shared = intersections(first, second)
    union = areas(first)[:, None] + areas(second)[None] - shared
    return torch.where(shared > 0, shared / union.clamp(min=1e-12), torch.zeros_like(shared))


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """(N,) intersections over unions of N pairs of boxes, xyxy."""
    low, high = torch.maximum(first[:, :2], second[:, :2]), torch.minimum(first[:, 2:], second[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    return shared / (areas(first) + areas(second) - shared + 1e-16)


def centres_inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """(N, M) bool: which of N points (x, y) lie inside of M boxes."""
    return ((centres[:, None] > boxes[None, :, :2]) & (centres[:, None] < boxes[None, :, 2:])).all(2)
