"""Preprocessing as :class:`runtime.bundle.spec.Preprocess` defines it, in NumPy and float64, sharing nothing with
OpenCV.

It is a hundred times slower than :mod:`runtime.images.preprocess`: a build checks with it that the OpenCV of its
machine resizes and converts as the definition says, before anything is calibrated or proved with that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType

import numpy as np

from runtime.bundle.spec import Interpolation, Preprocess
from runtime.common.arrays import Array

TOLERANCE: Mapping[Interpolation, float] = MappingProxyType(
    {"nearest": 0.0, "linear": 1.01, "area": 1.01, "cubic": 1.51}
)
"""In grey levels: OpenCV interpolates uint8 in fixed point with 11 bits and rounds; cubic adds 16 products."""


def steps_from_definition(image: Array, tensor: Array, spec: Preprocess) -> float:
    """The excess of a tensor over what OpenCV's rounding explains, in steps of 0..255; 0 where it is within.

    Args:
        image: (H, W, 3) uint8 BGR.
        tensor: (channels, height, width), what preprocessing made of it.
        spec: The preprocessing.
    """
    level = (np.array(spec.std) / spec.scale)[:, None, None]  # what one grey level is in the tensor, inverted
    rounding = 0.51 if spec.color == "GRAY" else 0.0  # OpenCV rounds the luma to a whole grey level
    difference = np.abs(tensor - defined_tensor(image, spec)) * level
    return max(0.0, float(difference.max()) - TOLERANCE[spec.interpolation] - rounding - 1e-3)


def defined_tensor(image: Array, spec: Preprocess, *, uncut: bool = False) -> Array:
    """(H, W, 3) uint8 BGR -> (channels, height, width) float64.

    ``uncut`` resizes all of an image of which no more than the middle is seen, as the definition has it.
    """
    fitted = _fitted(image.astype(np.float64), spec, uncut=uncut)
    luma = fitted @ np.array([[0.114], [0.587], [0.299]])  # BT.601, of blue, green and red
    channels = {"RGB": fitted[..., ::-1], "BGR": fitted, "GRAY": luma}[spec.color]
    normalised = (channels * spec.scale - np.array(spec.mean)) / np.array(spec.std)
    return np.asarray(normalised.transpose(2, 0, 1), np.float64)


def _fitted(image: Array, spec: Preprocess, *, uncut: bool) -> Array:
    rows, columns = image.shape[:2]
    if (rows, columns) == (spec.height, spec.width):
        return image
    if spec.fit == "stretch":
        return _resized(image, spec.height, spec.width, spec.interpolation)
    if spec.fit == "letterbox":
        ratio = min(spec.width / columns, spec.height / rows)
        height, width = (max(1, min(round(side * ratio), limit)) for side, limit in _sides(image, spec))
        top, left = (spec.height - height) // 2, (spec.width - width) // 2
        if spec.align == "top-left":
            exact = min(Fraction(spec.width, columns), Fraction(spec.height, rows))
            height, width, top, left = max(1, math.floor(rows * exact)), max(1, math.floor(columns * exact)), 0, 0
        output = np.full((spec.height, spec.width, 3), float(spec.pad_value))
        output[top : top + height, left : left + width] = _resized(image, height, width, spec.interpolation)
        return output
    ratio = max(spec.width / columns, spec.height / rows)
    if ratio < 1:  # the middle on whole pixels, then its size
        height, width = (min(side, max(1, round(limit / ratio))) for side, limit in _sides(image, spec))
        top, left = (rows - height) // 2, (columns - width) // 2
        return _resized(image[top : top + height, left : left + width], spec.height, spec.width, spec.interpolation)
    if not uncut:  # of what would become more than 64 times what is seen, the middle is resized
        top, left = (max(0, side - math.ceil(64 * limit / ratio)) // 2 for side, limit in _sides(image, spec))
        if top or left:
            return _fitted(image[top : rows - top, left : columns - left], spec, uncut=False)
    height, width = (max(round(side * ratio), limit) for side, limit in _sides(image, spec))
    top, left = (height - spec.height) // 2, (width - spec.width) // 2
    whole = _resized(image, height, width, spec.interpolation)
    return whole[top : top + spec.height, left : left + spec.width]


def _sides(image: Array, spec: Preprocess) -> tuple[tuple[int, int], tuple[int, int]]:
    return (image.shape[0], spec.height), (image.shape[1], spec.width)


def _resized(image: Array, height: int, width: int, interpolation: Interpolation) -> Array:
    """Resampling is separable: one matrix of weights for each axis."""
    rows, columns = image.shape[:2]
    if (rows, columns) == (height, width):
        return image
    name: str = interpolation
    if name == "area" and (height > rows or width > columns):
        name = "area-up"  # OpenCV's answer where there is no area to average
    weights = _WEIGHTS[name]
    tall = np.tensordot(weights(rows, height), image, axes=1)
    wide = np.tensordot(tall, weights(columns, width), axes=(1, 1)).transpose(0, 2, 1)
    return np.asarray(np.clip(wide, 0, 255), np.float64)


def _nearest(source: int, target: int) -> Array:
    return _placed(source, target, lambda x, step: [(int(x * step), 1.0)])


def _linear(source: int, target: int) -> Array:
    def taps(x: int, step: float) -> list[tuple[int, float]]:
        position = (x + 0.5) * step - 0.5
        left = int(np.floor(position))
        return [(left, left + 1 - position), (left + 1, position - left)]

    return _placed(source, target, taps)


def _cubic(source: int, target: int) -> Array:
    a = -0.75

    def kernel(distance: float) -> float:
        t = abs(distance)
        if t <= 1:
            return ((a + 2) * t - (a + 3)) * t * t + 1
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a if t < 2 else 0.0

    def taps(x: int, step: float) -> list[tuple[int, float]]:
        position = (x + 0.5) * step - 0.5
        left = int(np.floor(position))
        return [(left + k, kernel(position - left - k)) for k in (-1, 0, 1, 2)]

    return _placed(source, target, taps)


def _area(source: int, target: int) -> Array:
    def taps(x: int, step: float) -> list[tuple[int, float]]:
        start, end = x * step, (x + 1) * step
        covered = [(k, min(k + 1, end) - max(k, start)) for k in range(int(start), min(int(np.ceil(end)), source))]
        return [(k, share / step) for k, share in covered if share > 0]

    return _placed(source, target, taps)


def _area_up(source: int, target: int) -> Array:
    def taps(x: int, step: float) -> list[tuple[int, float]]:
        left = int(x * step)
        share = float(np.float32((x + 1) - (left + 1) / step))  # float32, as OpenCV's: it decides ties
        share = 0.0 if share <= 0 else share - np.floor(share)
        return [(left, 1 - share), (left + 1, share)]

    return _placed(source, target, taps)


def _placed(source: int, target: int, taps: Callable[[int, float], list[tuple[int, float]]]) -> Array:
    """(target, source) weights; what lies beyond an edge is the edge's pixel."""
    weights = np.zeros((target, source))
    for x in range(target):
        for index, weight in taps(x, 1 / (target / source)):  # rounded as OpenCV does: it decides ties of "nearest"
            weights[x, min(max(index, 0), source - 1)] += weight
    return weights


_WEIGHTS = {"nearest": _nearest, "linear": _linear, "cubic": _cubic, "area": _area, "area-up": _area_up}
