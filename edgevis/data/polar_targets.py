"""What PolarMask learns at each point of an image: a class, the distances to a box, and 36 rays to an outline.

Paper: Xie, Sun, Song, Wang, Liu, Liang, Shen, Luo, "PolarMask: Single Shot Instance Segmentation With Polar
Representation", CVPR 2020, section 3.2. Of its code (xieenze/PolarMask, Apache-2.0): which pixels serve a ray, the
levels' ranges and the square around a centre.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

BACKGROUND, IGNORED = -1, -2
"""Classes of points that learn that nothing is there, and of points that learn nothing."""

RAYS = 36
"""Rays of an outline, at 0, 10, 20, … degrees: 0 points down, 90 to the right."""

RayEnds = Literal["pixels", "edges"]
"""What ends a ray: ``pixels`` of the contour near its angle, as the paper's code has it, or ``edges``, the lines
between neighbouring pixels. Small objects have too few pixels: at a radius of 5, 24 of the rays find none."""

MISSING = 1e-6
"""The length of a ray that nothing of the outline ends."""

COLUMNS = 5 + RAYS
"""Of targets: class, distances to left, top, right and bottom, rays."""

_DEGREES = 360 // RAYS
_NEAR = (0, 1, -1, 2, -2, 3, -3)
"""How many degrees the pixels that serve a ray may be off; the first that has any counts."""
_ON_THE_RAY = 1e-6
"""Pixels that rounding may put a pixel beside a ray."""
_RADIUS = 1.5
_RANGES = ((-1.0, 64.0), (64.0, 128.0), (128.0, 256.0), (256.0, 512.0), (512.0, np.inf))
"""The largest distance to a side of the box, in pixels, that each level learns; both ends belong to it."""


def outer_contour(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """All pixels of the largest outer contour of a mask (H, W), in order, (K, 2) int64, (x, y); K is 0 if it is empty.

    "Largest" is by the area that it encloses; of equal ones the first.
    """
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return np.zeros((0, 2), np.int64)
    return np.asarray(max(contours, key=cv2.contourArea)[:, 0], np.int64)


def contour_centre(contour: NDArray[np.int64]) -> tuple[int, int]:
    """The centroid of the polygon, (x, y), truncated to whole pixels; the mean of its pixels where it has no area."""
    x, y = contour.astype(np.float64).T
    parts = x * np.roll(y, 1) - y * np.roll(x, 1)
    area = parts.sum() / 2
    if area == 0:
        return int(x.mean()), int(y.mean())
    centre = [(parts * (axis + np.roll(axis, 1))).sum() / (6 * area) for axis in (x, y)]
    return int(centre[0]), int(centre[1])


def ray_lengths(
    contour: NDArray[np.int64], points: NDArray[np.float32], *, ends: RayEnds = "pixels"
) -> NDArray[np.float32]:
    """The distance of a contour from points in 36 directions.

    By ``edges`` it is that of the farthest crossing. By ``pixels`` a direction takes the farthest pixel of exactly its
    angle in whole degrees, else of 1 degree more, 1 less, 2 more and so on to 3 less, else :data:`MISSING`. The search
    does not wrap: 359 degrees never serve 0.

    Args:
        contour: (K, 2), (x, y).
        points: (M, 2), (x, y).
        ends: See :data:`RayEnds`.

    Returns:
        (M, 36) float32 in pixels; :data:`MISSING` where nothing ends the ray.
    """
    if ends == "edges":
        return _lengths_to_edges(contour, points)
    offset = contour.astype(np.float32)[None] - points[:, None]
    angle = np.rad2deg(np.arctan2(offset[..., 0], offset[..., 1]).astype(np.float32))
    degree = np.where(angle < 0, angle + 360, angle).astype(np.int64)
    reach = max(_NEAR)
    farthest = np.zeros((len(points), reach + 361 + reach), np.float32)
    rows = np.broadcast_to(np.arange(len(points))[:, None], degree.shape)
    np.maximum.at(farthest, (rows, degree + reach), np.hypot(offset[..., 0], offset[..., 1]))
    wanted = np.arange(RAYS) * _DEGREES + reach
    found = np.stack([farthest[:, wanted + off] for off in _NEAR])
    first = (found > 0).argmax(axis=0)[None]
    lengths: NDArray[np.float32] = np.maximum(np.take_along_axis(found, first, axis=0)[0], np.float32(MISSING))
    return lengths


def polar_targets(
    points: NDArray[np.float32],
    strides: NDArray[np.float32],
    contours: Sequence[NDArray[np.int64]],
    classes: NDArray[np.int64],
    *,
    ends: RayEnds = "pixels",
) -> NDArray[np.float32]:
    """Which point learns which object, and what of it.

    A point learns an object if it lies within 1.5 strides of the centre of its contour, inside the contour's box, and
    the largest distance to a side of the box is in its level's range; of several objects, that with the smallest box.

    Args:
        points: (P, 2) float32, (x, y), columns and rows of pixels, level by level.
        strides: (P, 1) float32: 8 to 128.
        contours: Of each object, (K, 2), (x, y), K > 0; see :func:`outer_contour`.
        classes: (G,) of the objects, from 0.
        ends: Of the rays, see :data:`RayEnds`.

    Returns:
        (P, 41) float32: the class, or :data:`BACKGROUND`; the distances to the first and last column and row of the
        box, in pixels; 36 rays in pixels. 0 where nothing is learned.
    """
    targets = np.zeros((len(points), COLUMNS), np.float32)
    targets[:, 0] = BACKGROUND
    if not contours:
        return targets
    low = np.array([contour.min(0) for contour in contours], np.float32)
    high = np.array([contour.max(0) for contour in contours], np.float32)
    centres = np.array([contour_centre(contour) for contour in contours], np.float32)
    areas = (high - low + 1).prod(1)
    reach = (strides * _RADIUS)[:, None]
    inside = (points[:, None] > np.maximum(centres - reach, low)) & (
        points[:, None] < np.minimum(centres + reach, high)
    )
    distances = np.concatenate([points[:, None] - low, high - points[:, None]], axis=2)
    largest = distances.max(2)
    ranges = np.array(_RANGES, np.float32)[np.log2(strides[:, 0]).astype(int) - 3]
    learns = inside.all(2) & (largest >= ranges[:, :1]) & (largest <= ranges[:, 1:])
    cost = np.where(learns, areas, np.inf)
    chosen = cost.argmin(1)
    places = np.flatnonzero(learns.any(1))
    targets[places, 0] = classes[chosen[places]]
    targets[places, 1:5] = distances[places, chosen[places]]
    for number, contour in enumerate(contours):
        of_object = places[chosen[places] == number]
        if len(of_object):
            targets[of_object, 5:] = ray_lengths(contour, points[of_object], ends=ends)
    return targets


def _lengths_to_edges(contour: NDArray[np.int64], points: NDArray[np.float32]) -> NDArray[np.float32]:
    """(M, 36): the farthest crossing of each ray with the closed polygon of the contour's pixels."""
    angles = np.deg2rad(_DEGREES * np.arange(RAYS))
    x, y = np.sin(angles), np.cos(angles)
    start = contour[None].astype(np.float64) - points[:, None]
    # (M, 36, K): how far each pixel lies along the ray and beside it.
    along = start[:, None, :, 0] * x[:, None] + start[:, None, :, 1] * y[:, None]
    beside = start[:, None, :, 0] * y[:, None] - start[:, None, :, 1] * x[:, None]
    next_along, next_beside = np.roll(along, -1, axis=2), np.roll(beside, -1, axis=2)
    apart = beside - next_beside
    crosses = (beside * next_beside <= 0) & (apart != 0)
    share = np.divide(beside, apart, out=np.zeros_like(beside), where=crosses)
    lengths = np.where(crosses, along + share * (next_along - along), 0).max(axis=2)
    # A ray along edges crosses none of them: it ends at the last pixel that lies on it.
    lengths = np.maximum(lengths, np.where(np.abs(beside) < _ON_THE_RAY, along, 0).max(axis=2))
    return np.asarray(np.maximum(lengths, MISSING), np.float32)
