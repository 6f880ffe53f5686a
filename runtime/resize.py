"""Bilinear resizing of maps with the corners aligned, as segmentation networks resize their logits.

OpenCV has no such mode, and its nearest relative (``remap``) rounds positions to 1/32 pixel.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from runtime.arrays import Array


def resize_aligned(maps: Array, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resize the last two axes.

    Sample i of n falls on position ``i * (old - 1) / (n - 1)``: the first on the first, the last on the last.
    Separable, as two matrix products whose rows have two weights each: the fastest form in NumPy.

    Args:
        maps: (..., h, w) finite floating point.
        size: The new (H, W).

    Returns:
        (..., H, W) float32.
    """
    rows, columns = maps.shape[-2:]
    down = _weights(rows, size[0])
    across = _weights(columns, size[1])
    return np.asarray(down @ (np.asarray(maps, np.float32) @ across.T), np.float32)


@functools.lru_cache(maxsize=64)
def _weights(old: int, new: int) -> npt.NDArray[np.float32]:
    """(new, old): the weight of each old sample in each new one; positions in float64, weights rounded once."""
    position = np.linspace(0.0, old - 1, new) if new > 1 else np.zeros(1)
    first = np.clip(np.floor(position), 0, max(old - 2, 0)).astype(np.intp)
    second = np.minimum(first + 1, old - 1)
    part = position - first
    weights = np.zeros((new, old), np.float64)
    np.add.at(weights, (np.arange(new), first), 1.0 - part)
    np.add.at(weights, (np.arange(new), second), part)
    return weights.astype(np.float32)
