"""Masks for images without one, so that a model that needs masks can be calibrated and verified."""

from __future__ import annotations

import cv2
import numpy as np

from runtime.images.decode import Image
from runtime.images.masks import Mask

# GrabCut's time grows with the pixels, and a mask for calibration need not be fine.
_SIDE = 96
_MARGIN = 0.2
_ITERATIONS = 2
_SEED = 20261120


def central_object(image: Image) -> Mask:
    """(H, W) bool: the salient object in the middle of a photograph, by GrabCut (Rother et al., 2004).

    Without such an object the mask is the middle itself. The same image always gets the same mask.
    """
    rows, columns = image.shape[:2]
    ratio = min(1.0, _SIDE / max(rows, columns))
    size = (max(8, round(columns * ratio)), max(8, round(rows * ratio)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    left, top = round(size[0] * _MARGIN), round(size[1] * _MARGIN)
    middle = (left, top, size[0] - 2 * left, size[1] - 2 * top)
    trimap = np.zeros(small.shape[:2], np.uint8)
    cv2.setRNGSeed(_SEED)  # it starts from a k-means of random centres
    cv2.grabCut(small, trimap, middle, np.zeros((1, 65)), np.zeros((1, 65)), _ITERATIONS, cv2.GC_INIT_WITH_RECT)
    foreground = np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    if not foreground.any():
        foreground[top : top + middle[3], left : left + middle[2]] = 1
    mask: Mask = cv2.resize(foreground, (columns, rows), interpolation=cv2.INTER_NEAREST) > 0
    return mask
