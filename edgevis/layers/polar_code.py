"""The code of PolarMask's outlines: at each point of five levels four distances to a box and 36 rays to an outline.

Paper: Xie, Sun, Song, Wang, Liu, Liang, Shen, Luo, "PolarMask: Single Shot Instance Segmentation With Polar
Representation", CVPR 2020, section 3. The places of the points and the direction of the first ray are those of its
code (xieenze/PolarMask, Apache-2.0).
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevis.data.polar_targets import RAYS
from edgevis.layers.grid_boxes import cell_grid

STRIDES = (8, 16, 32, 64, 128)
"""Pixels between two points of each level."""

MAX_LOG_DISTANCE = 10.0
"""The largest logarithm of a distance in pixels that is decoded: e^10 are 22,026, more than the largest input has."""


def polar_points(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The points of all levels, row by row, levels in the order of :data:`STRIDES`.

    Args:
        size: Height and width of the image in pixels, multiples of 128.

    Returns:
        (P, 2) float32, (x, y), the column and row of a pixel: ``stride * i + stride // 2``; the strides, (P, 1)
        float32.
    """
    corners, strides = cell_grid(size, STRIDES)
    return corners + strides // 2, strides


def point_count(size: tuple[int, int]) -> int:
    """P, the number of points of an image of that height and width."""
    return sum((size[0] // stride) * (size[1] // stride) for stride in STRIDES)


def ray_directions() -> Tensor:
    """(36, 2) float32: (sin, cos) of the rays' angles, which is their direction in (x, y)."""
    angles = torch.arange(RAYS, dtype=torch.float64) * (2 * torch.pi / RAYS)
    return torch.stack([angles.sin(), angles.cos()], dim=1).float()


def decode_polygons(points: Tensor, rays: Tensor, *, size: tuple[int, int]) -> Tensor:
    """The outlines' vertices, in coordinates in which pixel i covers i to i + 1.

    A ray ends in the middle of an outline's pixel. The vertex lies half a pixel beyond, so that the polygon holds the
    pixel, as the code's filled contours and the boxes of :func:`decode_distances` do.

    Args:
        points: (P, 2) float32, see :func:`polar_points`.
        rays: (..., P, 36) float32: distances in pixels.
        size: Height and width of the image in pixels.

    Returns:
        (..., P, 36, 2) float32, (x, y), 0 to the width and the height.
    """
    vertices = points[:, None, :] + 0.5 + (rays[..., None] + 0.5) * ray_directions().to(rays.device)
    return torch.minimum(torch.relu(vertices), torch.tensor([float(size[1]), float(size[0])], device=rays.device))


def decode_distances(points: Tensor, distances: Tensor) -> Tensor:
    """The boxes of distances that count from a pixel to an object's first and last one.

    Args:
        points: (P, 2) float32, see :func:`polar_points`.
        distances: (..., P, 4) float32: left, top, right, bottom, in pixels.

    Returns:
        (..., P, 4) float32: x1, y1, x2, y2, in coordinates in which pixel i covers i to i + 1.
    """
    return torch.cat([points - distances[..., :2], points + distances[..., 2:] + 1.0], dim=-1)
