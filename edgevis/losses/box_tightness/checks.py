"""Argument checks shared by the box-tightness losses; see :mod:`edgevis.losses.box_tightness`.

Provenance: our own code. Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from runtime.errors import InputError

EPSILON = 1e-6
"""Probabilities are kept this far from 0 and 1, where the logarithms of the losses end."""

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def checked_pred(pred: Tensor) -> Tensor:
    """The predictions, clamped to ``EPSILON`` .. 1 - ``EPSILON``; float16 and bfloat16 as float32.

    Raises:
        InputError: They are not (B, C, H, W) floating point numbers from 0 to 1.
    """
    if not isinstance(pred, Tensor) or not pred.is_floating_point():
        actual = f"a tensor of {pred.dtype}" if isinstance(pred, Tensor) else f"a {type(pred).__name__}"
        raise InputError(f"pred is {actual}; a floating point tensor of probabilities (B, C, H, W) is needed")
    if pred.ndim != 4 or not pred.numel():
        raise InputError(f"pred has shape {tuple(pred.shape)}; allowed: (B, C, H, W), no axis empty")
    low, high = (float(end) for end in pred.detach().aminmax())
    if not (low >= 0 and high <= 1):
        actual = "NaN" if math.isnan(low + high) else f"values from {low:.4g} to {high:.4g}"
        raise InputError(f"pred holds {actual}; allowed: probabilities from 0 to 1, as torch.sigmoid makes of logits")
    # In 16 bits 1 - EPSILON is 1, and its logarithm infinite.
    if pred.dtype in (torch.float16, torch.bfloat16):
        pred = pred.float()
    return pred.clamp(EPSILON, 1 - EPSILON)


def checked_boxes(boxes: Tensor, pred: Tensor) -> Tensor:
    """The boxes as (N, 6) int64 on the CPU.

    Raises:
        InputError: They are not (N, 6) integers, or one is inverted, outside of its image, or of an image or a class
            that ``pred`` does not have.
    """
    try:
        boxes = torch.as_tensor(boxes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"boxes cannot be read as a tensor: {error}") from error
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        raise InputError(
            f"boxes have shape {tuple(boxes.shape)}; allowed: (N, 6), a row being image, class, x1, y1, x2, y2"
        )
    if not len(boxes):
        return torch.zeros((0, 6), dtype=torch.int64)
    if boxes.dtype not in _INTEGERS:
        raise InputError(f"boxes are {boxes.dtype}; allowed: integers, image, class and inclusive pixel positions")
    boxes = boxes.detach().to("cpu", torch.int64)
    images, classes, height, width = pred.shape
    image, of_class, x1, y1, x2, y2 = boxes.unbind(1)
    for wrong, what in (
        ((image < 0) | (image >= images), f"the images are 0 to {images - 1}"),
        ((of_class < 0) | (of_class >= classes), f"the classes are 0 to {classes - 1}"),
        ((x1 > x2) | (y1 > y2), "x1 must not be above x2, nor y1 above y2"),
        (
            (x1 < 0) | (y1 < 0) | (x2 >= width) | (y2 >= height),
            f"inside of the image x is 0 to {width - 1} and y is 0 to {height - 1}: clip the box",
        ),
    ):
        if wrong.any():
            index = int(wrong.nonzero()[0])
            names = ("image", "class", "x1", "y1", "x2", "y2")
            row = ", ".join(f"{name} {value}" for name, value in zip(names, boxes[index].tolist(), strict=True))
            raise InputError(f"box {index} is {row}; {what}")
    return boxes


def checked_angles(angles: Sequence[float]) -> tuple[float, ...]:
    """The angles as floats.

    Raises:
        InputError: There is none, or one is not between -90 and 90 degrees.
    """
    try:
        values = tuple(float(angle) for angle in angles)
    except (TypeError, ValueError) as error:
        raise InputError(f"angles are {angles!r}; allowed: a sequence of degrees, such as (-20, 0, 20)") from error
    if not values:
        raise InputError("angles are empty; give at least one, such as 0 for the rows and columns of the box")
    for angle in values:
        if not -90 < angle < 90:
            raise InputError(f"an angle is {angle:g} degrees; allowed: above -90 and below 90")
    return values


def checked_number(name: str, value: Any, *, low: float, high: float = math.inf) -> float:
    """The value as a finite float from ``low`` to ``high``.

    Raises:
        InputError: It is not.
    """
    allowed = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
    if isinstance(value, bool):
        raise InputError(f"{name} is {value}; allowed: {allowed}")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {value!r}; allowed: {allowed}") from error
    if not (low <= number <= high and math.isfinite(number)):
        raise InputError(f"{name} is {number:g}; allowed: {allowed}")
    return number
