"""Anchors of EfficientDet and RetinaNet, and the code of a box relative to its anchor.

Papers: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", ICCV 2017, section 4; Tan, Pang, Le,
"EfficientDet: Scalable and Efficient Object Detection", CVPR 2020.
Provenance: our own code. Licence: this file, as the rest of edgevis.

Boxes are (x1, y1, x2, y2), as everywhere in edgevis; a code is (y, x, log height, log width), the order of published
weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from edgevis.layers.bifpn import LEVELS

# Factors of an anchor's sides, (width, height), and of its scale; aspects are the inner loop.
_ASPECTS = (np.array([1.0, 1.0]), np.array([1.4, 0.7]), np.array([0.7, 1.4]))
_OCTAVES = (2.0**0, 2.0 ** (1 / 3), 2.0 ** (2 / 3))
# Side of the smallest anchor of a level, in its strides.
_BASE = 4.0

ANCHORS_PER_CELL = len(_ASPECTS) * len(_OCTAVES)
MAX_LOG_SIZE = math.log(1000 / 16)
"""The largest logarithm of a side, in the anchor's, that is decoded: no trained network reaches it, and an untrained
one makes no infinity."""
_MIN_SIDE = 1e-8


def anchor_boxes(size: tuple[int, int]) -> Tensor:
    """The anchors of an image of ``size`` (height, width) in pixels.

    Returns:
        (A, 4) float32, x1, y1, x2, y2 in pixels, not clipped. Levels 3 to 7; in a level row-major over (y, x, anchor);
        in a cell the octave is the outer, the aspect the inner loop. 49,104 rows at 512 x 512.
    """
    return torch.cat([_level_anchors(size, level) for level in LEVELS])


def anchors_per_level(size: tuple[int, int]) -> tuple[int, ...]:
    """The number of anchors of each level, 3 to 7, of an image of ``size`` (height, width) in pixels."""
    sides = [_map_size(size, level) for level in LEVELS]
    return tuple(height * width * ANCHORS_PER_CELL for height, width in sides)


def encode_anchors(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The code of boxes relative to their anchors.

    Args:
        boxes, anchors: (..., 4), x1, y1, x2, y2.

    Returns:
        (..., 4): y and x of the centre, in the anchor's sides, and the logarithms of height and width in them.
    """
    anchor_centre, anchor_sides = _centre_and_sides(anchors)
    centre, sides = _centre_and_sides(boxes)
    anchor_sides, sides = anchor_sides + _MIN_SIDE, sides + _MIN_SIDE
    return torch.cat(
        [_swapped((centre - anchor_centre) / anchor_sides), _swapped(torch.log(sides / anchor_sides))], dim=-1
    )


def decode_anchors(code: Tensor, anchors: Tensor) -> Tensor:
    """The boxes of a code.

    Args:
        code: (..., A, 4) float32, see :func:`encode_anchors`.
        anchors: (A, 4) float32, x1, y1, x2, y2.

    Returns:
        (..., A, 4) float32, x1, y1, x2, y2, not clipped.
    """
    anchor_centre, anchor_sides = _centre_and_sides(anchors)
    centre = _swapped(code[..., :2]) * anchor_sides + anchor_centre
    half = _swapped(code[..., 2:]).clamp(max=MAX_LOG_SIZE).exp() * (anchor_sides / 2)
    return torch.cat([centre - half, centre + half], dim=-1)


def _level_anchors(size: tuple[int, int], level: int) -> Tensor:
    """The anchors of one level, (n, 4) float32; computed in float64."""
    rows, columns = _map_size(size, level)
    stride = np.array([size[1] / columns, size[0] / rows])
    sides = [octave * _BASE * stride * aspect for octave in _OCTAVES for aspect in _ASPECTS]
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    centres = (np.stack([x, y], axis=-1).reshape(-1, 1, 2) + 0.5) * stride
    half = np.stack(sides) / 2
    boxes = np.concatenate([centres - half, centres + half], axis=-1)
    return torch.from_numpy(boxes.reshape(-1, 4).astype(np.float32))


def _map_size(size: tuple[int, int], level: int) -> tuple[int, int]:
    """Height and width of a level's map: halved and rounded up ``level`` times."""
    height, width = (-(-side // 2**level) for side in size)
    return height, width


def _swapped(pairs: Tensor) -> Tensor:
    """(x, y) from (y, x) and the reverse."""
    return torch.cat([pairs[..., 1:], pairs[..., :1]], dim=-1)


def _centre_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    first, last = boxes[..., :2], boxes[..., 2:]
    return (first + last) / 2, last - first
