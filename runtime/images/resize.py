"""Bilinear resizing of maps with the corners aligned, as segmentation networks resize their logits.

OpenCV has no such mode, and its nearest relative (``remap``) rounds positions to 1/32 pixel.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array


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
    return rows_aligned(widened(maps, size[1]), size[0], slice(None))


def widened(maps: Array, width: int) -> npt.NDArray[np.float32]:
    """Resize the width, the first half of :func:`resize_aligned`: (..., h, w) to (..., h, W)."""
    return np.asarray(np.asarray(maps, np.float32) @ _weights(maps.shape[-1], width).T, np.float32)


def rows_aligned(wide: npt.NDArray[np.float32], height: int, rows: slice) -> npt.NDArray[np.float32]:
    """Resize the height for some rows: (..., h, W) to those rows of (..., H, W), to limit memory."""
    return np.asarray(_weights(wide.shape[-2], height)[rows] @ wide, np.float32)


def rows_linear(wide: npt.NDArray[np.float32], height: int, rows: slice) -> npt.NDArray[np.float32]:
    """Some rows of (h, W) resized to (H, W) like ``cv2.resize`` with ``INTER_LINEAR``: pixel centres align.

    Args:
        wide: (h, W).
        height: H.
        rows: The rows of H to compute.
    """
    old = wide.shape[0]
    position = (np.arange(height)[rows] + 0.5) * (old / height) - 0.5
    first = np.clip(np.floor(position), 0, old - 1).astype(np.intp)
    part = np.clip(position - first, 0.0, 1.0).astype(np.float32)[:, None]
    above, step = wide[first], wide[np.minimum(first + 1, old - 1)]
    step -= above
    step *= part
    above += step
    return np.asarray(above)


@functools.lru_cache(maxsize=8)
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
