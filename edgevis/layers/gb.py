"""The box code of anchor-free detectors: a box relative to the cell of the map that finds it.

Paper: Ge, Liu, Wang, Li, Sun, "YOLOX: Exceeding YOLO Series in 2021", 2021, section 2.1.
Provenance: our own code. Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LOG_SIZE = 8.0
"""The largest logarithm of a side in strides that is decoded: no trained network comes near (e^8 strides of 8 are
23,847 pixels), and an untrained one makes no infinity."""


def cell_grid(size: tuple[int, int], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The cells of all levels, in row-major order, levels in the order of ``strides``.

    Args:
        size: Height and width of the image in pixels, multiples of each stride.
        strides: Pixels between two cells of a level.

    Returns:
        The upper left corner of each cell, (A, 2) float32, (x, y) in pixels; its stride, (A, 1) float32.
    """
    corners, steps = [], []
    for stride in strides:
        y, x = torch.meshgrid(
            torch.arange(size[0] // stride, dtype=torch.float32),
            torch.arange(size[1] // stride, dtype=torch.float32),
            indexing="ij",
        )
        corner = torch.stack([x, y], dim=-1).reshape(-1, 2) * stride
        corners.append(corner)
        steps.append(torch.full_like(corner[:, :1], stride))
    return torch.cat(corners), torch.cat(steps)


def decode_cells(code: Tensor, corners: Tensor, strides: Tensor) -> Tensor:
    """The boxes of a code: the centre is offset from the cell's corner, sides are logarithms, both in strides.

    Args:
        code: (..., A, 4) float32: x, y, log width, log height.
        corners: (A, 2) float32, see :func:`cell_grid`.
        strides: (A, 1) float32.

    Returns:
        (..., A, 4) float32, x1, y1, x2, y2 in pixels of the image.
    """
    centre = code[..., :2] * strides + corners
    half = code[..., 2:].clamp(max=MAX_LOG_SIZE).exp() * (strides / 2)
    return torch.cat([centre - half, centre + half], dim=-1)
