"""Boundary IoU: the overlap of the strips along two masks' outlines, which a wrong border moves and an interior hides.

Paper: Cheng, Girshick, Dollár, Berg, Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
CVPR 2021, section 4. Of a large object nearly all pixels are inside, and IoU is high whatever its border looks like.
Provenance: our own code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.errors import InputError

__all__ = ["boundary", "boundary_iou_per_volume"]

SHARE = 0.02
"""The strip's width as a share of the image's diagonal."""


def boundary(mask: ArrayLike, *, share: float = SHARE) -> NDArray[np.bool_]:
    """The pixels of a mask that are at most d from its outline; what lies outside of the image is not of the mask.

    As in the authors' code d is ``share`` of the image's diagonal, rounded, at least 1, and a pixel's distance is the
    larger of those in rows and columns (an erosion by 3x3 pixels, d times).

    Args:
        mask: (H, W) bool.
        share: From 0 on.

    Returns:
        (H, W) bool.

    Raises:
        InputError: Another dtype or number of axes, or a negative share.
    """
    pixels = np.asarray(mask)
    if pixels.ndim != 2 or pixels.dtype != np.bool_ or not pixels.size or not share >= 0:
        raise InputError(
            f"mask has shape {pixels.shape} and dtype {pixels.dtype}, share is {share}; allowed: (H, W) bool, and a "
            "share of 0 or more"
        )
    distance = max(1, round(share * math.hypot(*pixels.shape)))
    padded = np.pad(pixels.astype(np.uint8), 1)
    # A border of ones beyond the padding: only the padding's zeros erode.
    inside = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=distance, borderValue=1)
    return np.asarray(pixels & (inside[1:-1, 1:-1] == 0), np.bool_)


def boundary_iou_per_volume(
    predictions: Sequence[ArrayLike], targets: Sequence[ArrayLike], volumes: Sequence[str], *, share: float = SHARE
) -> dict[str, float]:
    """Intersection over union of both masks' boundaries; of a volume's slices pixels are summed, not averaged.

    Args:
        predictions, targets: S slices or images, each (H, W) bool; a pair is equally large.
        volumes: S names: which volume a slice belongs to, in any order; an image of its own has its own name.
        share: See :func:`boundary`.

    Returns:
        Each volume's value, from 0 to 1, in the order in which they come first; 1 where both have no pixel.

    Raises:
        InputError: As of :func:`boundary`, another number of predictions, targets and volumes, none at all, or a
            prediction that is not as large as its target.
    """
    if not len(predictions) == len(targets) == len(volumes) or not len(volumes):
        raise InputError(
            f"{len(predictions)} predictions, {len(targets)} targets and {len(volumes)} names of volumes; allowed: "
            "equally many, one or more"
        )
    sums: dict[str, NDArray[np.int64]] = {}
    for number, (prediction, target, volume) in enumerate(zip(predictions, targets, volumes, strict=True)):
        one, other = boundary(prediction, share=share), boundary(target, share=share)
        if one.shape != other.shape:
            raise InputError(f"prediction of slice {number} is {one.shape}, its target {other.shape}; allowed: equal")
        counts = np.array([np.count_nonzero(one & other), np.count_nonzero(one | other)])
        sums[volume] = sums.get(volume, np.zeros(2, np.int64)) + counts
    return {volume: int(both) / int(either) if either else 1.0 for volume, (both, either) in sums.items()}
