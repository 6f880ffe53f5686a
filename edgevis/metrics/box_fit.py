"""How well masks fit boxes: an estimate of the Dice if only the objects' boxes are known.

Training from boxes has no mask to choose a checkpoint by. What a box says of its object: the object lies within the
box and touches its four sides. What is found outside of all boxes is wrong, so that it counts as in Dice. Of what is
found inside, the estimate needs the object's size: it takes the shape that was found, its gaps filled, and lets it
reach the sides that it does not touch, narrowing as a parabola does. A core of 60 % of each side is then half of the
object, whatever the object's shape; an outline or noise is the little of the object that it covers. A mask that touches
all sides and has no gaps is taken to be the object, but for the box's corners, which belong to an object as likely as
not: a box that is filled scores 0.94.

What boxes cannot tell stays unseen: which of two masks is right that both reach all sides and have no gaps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.errors import InputError

__all__ = ["box_fit", "box_fit_per_volume"]

_LEAST_FILL = 0.5
"""Of a box, at least: half of it is what a triangle or a diamond fills. Without a bound a line from corner to corner
would be a whole object."""

_CORNER = 0.5
"""What a pixel outside of the ellipse that the box holds is worth, as right one and of the object's size. Training from
boxes goes through epochs that fill the boxes; with 1 they score as much as those that find the objects."""

_TIP = 2 / 3
"""The area of a tip that was not found, of its length times the shape's mean width: a parabola's. With 1, as if the
shape had been shrunk, masks that miss the thin ends of objects score less than worse ones that fill their boxes."""

_SPECK = 0.1
"""Regions of less than this share of the largest one in the box are no part of the shape: noise beside a core does not
make it touch the sides. Several regions remain, for an object may be cut into pieces."""


def box_fit(prediction: ArrayLike, boxes: ArrayLike, *, empty: float = 1.0) -> float:
    """The Dice of one image's mask, estimated from boxes: 0 to 1; 1 for a mask that fills its boxes tightly.

    Args:
        prediction: (H, W) bool, or integers 0 and 1.
        boxes: (I, 4) integers, or (4,) of one box: x1, y1, x2, y2 in pixels, the ends **inclusive**. I may be 0.
        empty: The value without any box and any pixel found, as of :func:`edgevis.metrics.dice_per_volume`.

    Raises:
        InputError: Another shape or dtype, another value than 0 and 1, or a box that is empty or leaves the image.
    """
    return box_fit_per_volume([prediction], [boxes], ["image"], empty=empty)["image"]


def box_fit_per_volume(
    predictions: Sequence[ArrayLike], boxes: Sequence[ArrayLike], volumes: Sequence[str], *, empty: float = 1.0
) -> dict[str, float]:
    """As :func:`box_fit`, for volumes segmented slice by slice: pixels are summed over slices, not averaged.

    Args:
        predictions: S slices as ``prediction`` of :func:`box_fit`, of any sizes.
        boxes: The boxes of each.
        volumes: S names: which volume a slice belongs to, in any order.
        empty: The value of a volume without any box and any pixel found.

    Returns:
        Each volume's value, from 0 to 1, in the order in which they come first.

    Raises:
        InputError: As of :func:`box_fit`, another number of slices, boxes and names, or none at all.
    """
    if not len(predictions) == len(boxes) == len(volumes) or not len(volumes):
        raise InputError(
            f"{len(predictions)} predictions, boxes of {len(boxes)} images and {len(volumes)} names of volumes; "
            "allowed: equally many, one or more"
        )
    sums: dict[str, NDArray[np.float64]] = {}
    for number, (prediction, table, volume) in enumerate(zip(predictions, boxes, volumes, strict=True)):
        mask = _checked_mask(prediction, number)
        sums[volume] = sums.get(volume, np.zeros(2)) + _areas(mask, _checked_boxes(table, mask.shape, number))
    return {volume: 2 * float(both / sizes) if sizes else empty for volume, (both, sizes) in sums.items()}


def _areas(mask: NDArray[np.bool_], boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The pixels that objects and mask have in common, and the sum of both; overlapping boxes count one by one."""
    outside = mask.copy()
    both = sizes = 0.0
    for x1, y1, x2, y2 in boxes.tolist():
        inside = np.s_[y1 : y2 + 1, x1 : x2 + 1]
        shape = _shape(mask[inside])
        worth = _worth(*shape.shape)
        outside[inside] = False
        both += float(worth[shape].sum())
        sizes += np.count_nonzero(mask[inside]) + _object_size(shape, worth)
    return np.array([both, sizes + np.count_nonzero(outside)])


def _shape(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The predicted mask within a box, (h, w), without specks."""
    count, regions, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count == 1:
        return mask
    areas = np.asarray(statistics)[:, cv2.CC_STAT_AREA]
    large = areas >= _SPECK * areas[1:].max()
    large[0] = False  # the background
    return np.asarray(large[regions], np.bool_)


@functools.lru_cache(maxsize=256)
def _worth(height: int, width: int) -> NDArray[np.float64]:
    """The weight of each pixel of a box, (h, w): 1 within its ellipse, less in its corners."""
    rows = (2 * np.arange(height) + 1 - height) / height
    columns = (2 * np.arange(width) + 1 - width) / width
    return np.where(rows[:, None] ** 2 + columns**2 <= 1, 1.0, _CORNER)


def _object_size(shape: NDArray[np.bool_], worth: NDArray[np.float64]) -> float:
    """The estimated size of the object with this predicted shape, both (h, w) as the box."""
    rows, columns = np.count_nonzero(shape.any(1)), np.count_nonzero(shape.any(0))
    least = _LEAST_FILL * shape.size
    if not rows:
        return least
    # A gap has predicted pixels on both sides in its row and in its column: L-shapes and separate pieces have none.
    filled = float(worth[_between(shape, 0) & _between(shape, 1)].sum())
    tips = sum((side - crossed) * filled / crossed for side, crossed in zip(shape.shape, (rows, columns), strict=True))
    return float(np.clip(filled + _TIP * tips, least, worth.sum()))


def _between(shape: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """The pixels between the first and the last set pixel of each line along an axis."""
    after = np.logical_or.accumulate(shape, axis)
    before = np.flip(np.logical_or.accumulate(np.flip(shape, axis), axis), axis)
    return np.asarray(after & before, np.bool_)


def _checked_mask(prediction: ArrayLike, number: int) -> NDArray[np.bool_]:
    mask = np.asarray(prediction)
    if mask.ndim != 2 or mask.dtype.kind not in "biu" or 0 in mask.shape:
        raise InputError(
            f"the mask of image {number} has shape {mask.shape} and dtype {mask.dtype}; allowed: (H, W), bool or 0 "
            "and 1"
        )
    if mask.min() < 0 or mask.max() > 1:
        raise InputError(f"the mask of image {number} holds {mask.min()} to {mask.max()}; allowed: 0 and 1")
    return mask.astype(np.bool_, copy=False)


def _checked_boxes(boxes: ArrayLike, size: tuple[int, ...], number: int) -> NDArray[np.int64]:
    table = np.asarray(boxes)
    if table.size == 0:
        return np.zeros((0, 4), np.int64)
    table = table[None] if table.ndim == 1 else table
    if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "iu":
        raise InputError(
            f"the boxes of image {number} have shape {np.shape(boxes)} and dtype {table.dtype}; allowed: (I, 4) or "
            "(4,) integers x1, y1, x2, y2"
        )
    height, width = size
    if (table < 0).any() or (table[:, 2:] < table[:, :2]).any() or (table[:, 2:] >= (width, height)).any():
        raise InputError(
            f"a box of image {number} is empty or leaves its {width} x {height} pixels; allowed: "
            f"0 <= x1 <= x2 < {width} and 0 <= y1 <= y2 < {height}"
        )
    return table.astype(np.int64, copy=False)
