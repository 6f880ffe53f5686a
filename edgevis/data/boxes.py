"""Boxes around mask regions, for box-supervised training: rows of image, class, x1, y1, x2, y2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.errors import InputError


def boxes_from_class_ids(
    masks: ArrayLike, *, class_ids: Sequence[int] = (1,), each: Literal["class", "region"] = "class"
) -> NDArray[np.int64]:
    """The smallest boxes that contain the classes.

    Args:
        masks: (B, H, W) integers or bool, class ids of each pixel.
        class_ids: The mask value of each class, in the order of a model's C channels.
        each: One box for all pixels of a class in an image, or one for each connected region of it (pixels that touch
            at a corner are connected).

    Returns:
        (N, 6) int64: image (position in ``masks``), class (position in ``class_ids``), and the box's first and last
        column and row x1, y1, x2, y2, all **inclusive**. Sorted by image, then by class, regions from top to bottom.
        What :func:`edgevis.losses.box_tightness_loss` takes.

    Raises:
        InputError: Not (B, H, W) integers, an empty axis, no class, or a class twice.
    """
    table = _checked(masks, "masks")
    if not class_ids or len(set(class_ids)) != len(class_ids):
        raise InputError(f"class_ids are {list(class_ids)}; allowed: one or more, each once")
    if each not in ("class", "region"):
        raise InputError(f"each is {each!r}; allowed: class, region")
    rows: list[tuple[int, ...]] = []
    for image, mask in enumerate(table):
        for place, class_id in enumerate(class_ids):
            shown = mask == class_id
            extents = _regions(shown) if each == "region" else _extents(shown.astype(np.uint8))
            rows += [(image, place, *box) for box in extents.tolist()]
    return np.array(rows, np.int64).reshape(-1, 6)


def boxes_from_instances(instances: ArrayLike, *, class_index: int = 0) -> NDArray[np.int64]:
    """The smallest box of each instance.

    Args:
        instances: (B, H, W) integers from 0: instance ids of each pixel, 0 is background.
        class_index: The class that all of them are given.

    Returns:
        (N, 6) int64 rows as of :func:`boxes_from_class_ids`, sorted by image, then by instance id.

    Raises:
        InputError: Not (B, H, W) integers from 0, or an empty axis.
    """
    table = _checked(instances, "instances")
    if table.min() < 0:
        raise InputError(f"instances hold {table.min()}; allowed: 0 for background, larger numbers for instances")
    rows = [(image, class_index, *box) for image, mask in enumerate(table) for box in _extents(mask).tolist()]
    return np.array(rows, np.int64).reshape(-1, 6)


def _checked(masks: ArrayLike, name: str) -> NDArray[Any]:
    table = np.asarray(masks)
    if table.ndim != 3 or 0 in table.shape or table.dtype.kind not in "biu":
        raise InputError(
            f"{name} have shape {table.shape} and dtype {table.dtype}; allowed: (B, H, W) integers, no axis empty"
        )
    return table


def _extents(ids: NDArray[Any]) -> NDArray[np.int64]:
    """The boxes (I, 4) of the nonzero values, sorted by value."""
    rows, columns = np.nonzero(ids)
    values, place = np.unique(ids[rows, columns], return_inverse=True)
    boxes = np.full((len(values), 4), -1, np.int64)
    boxes[:, :2] = max(ids.shape)
    for column, (reduce, points) in enumerate(
        ((np.minimum, columns), (np.minimum, rows), (np.maximum, columns), (np.maximum, rows))
    ):
        reduce.at(boxes[:, column], place, points)
    return boxes


def _regions(shown: NDArray[np.bool_]) -> NDArray[np.int64]:
    _, _, statistics, _ = cv2.connectedComponentsWithStats(shown.astype(np.uint8), connectivity=8)
    boxes = np.asarray(statistics, np.int64)[1:, :4]  # the first is the background
    boxes[:, 2:] += boxes[:, :2] - 1
    return boxes[np.lexsort((boxes[:, 0], boxes[:, 1]))]
