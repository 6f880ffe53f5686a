"""Masks of polygons: a pixel is inside if its centre is.

Coordinates are continuous, as those of boxes: pixel i covers i to i + 1, and its centre is at i + 0.5. OpenCV's
``fillPoly`` is not used: it fills every pixel that an edge touches, which makes a mask half a pixel wider on each side
and an instance of 30 pixels 7 % larger.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array

_PAIRS = 256  # that are compared at once


class Patch(NamedTuple):
    """The part of an image in which a mask has pixels, and the mask there, (h, w) bool."""

    rows: slice
    columns: slice
    mask: npt.NDArray[np.bool_]


def polygon_patch(polygon: Array, size: tuple[int, int]) -> Patch:
    """The pixels inside a polygon; where its outline crosses itself, the even-odd rule decides.

    Args:
        polygon: (V, 2) x, y of the vertices in order; vertices may lie beyond the image. Of NaN nothing is inside.
        size: The image's (H, W).
    """
    points = np.asarray(polygon, np.float64)
    if not len(points) or np.isnan(points).any():
        return Patch(slice(0, 0), slice(0, 0), np.zeros((0, 0), np.bool_))
    limits = np.array(size[::-1])
    first, last = (
        np.clip(np.ceil(edge(axis=0) - 0.5), 0, limits).astype(np.int64) for edge in (points.min, points.max)
    )
    height, width = int(last[1] - first[1]), int(last[0] - first[0])
    inside = _insides((points - first)[None], height, width)[0]
    return Patch(slice(int(first[1]), int(last[1])), slice(int(first[0]), int(last[0])), inside)


def _insides(polygons: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.bool_]:
    """(N, height, width): the pixels of a grid whose centres are inside each of N polygons, (N, V, 2)."""
    following = np.roll(polygons, -1, axis=1)
    centres = np.arange(height) + 0.5
    low, high = np.minimum(polygons[..., 1], following[..., 1]), np.maximum(polygons[..., 1], following[..., 1])
    number, edge, row = np.nonzero((low[..., None] <= centres) & (centres < high[..., None]))
    (x, y), (next_x, next_y) = polygons[number, edge].T, following[number, edge].T
    crossing = x + (centres[row] - y) * ((next_x - x) / (next_y - y))
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    # Right of each crossing inside becomes outside and outside inside.
    flips = np.zeros((len(polygons), height, width + 1), np.uint8)
    np.add.at(flips, (number, row, column), 1)
    np.bitwise_and(flips, 1, out=flips)
    return np.bitwise_xor.accumulate(flips, axis=2).view(np.bool_)[..., :-1]


def polygon_area(polygon: Array) -> float:
    """The area of a polygon (V, 2) in square pixels, by the shoelace formula."""
    x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def polygon_ious(first: Array, second: Array, *, samples: int = 64) -> npt.NDArray[np.float64]:
    """Intersection over union of N pairs of polygons, (N,), at points of a grid over what a pair covers together.

    Args:
        first, second: (N, V, 2) and (N, W, 2), vertices x, y in order; of NaN nothing is inside.
        samples: The points along each side of the grid. With 64 a figure is within about a hundredth.
    """
    found = [np.empty(0)]
    for start in range(0, len(first), _PAIRS):
        one, other = (np.asarray(part[start : start + _PAIRS], np.float64) for part in (first, second))
        every = np.concatenate([one, other], axis=1)
        low, extent = every.min(axis=1, keepdims=True), np.ptp(every, axis=1, keepdims=True)
        scale = np.divide(samples, extent, out=np.zeros_like(extent), where=extent > 0)
        there, too = (_insides((part - low) * scale, samples, samples) for part in (one, other))
        shared, either = (part.sum(axis=(1, 2)) for part in (there & too, there | too))
        found.append(np.divide(shared, either, out=np.zeros(len(one)), where=either > 0))
    return np.concatenate(found)


def polygon_mask(polygon: Array, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(H, W) bool: the pixels inside a polygon (V, 2), see :func:`polygon_patch`."""
    mask = np.zeros(size, np.bool_)
    rows, columns, inside = polygon_patch(polygon, size)
    mask[rows, columns] = inside
    return mask
