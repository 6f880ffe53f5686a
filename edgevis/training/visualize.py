"""Drawing functions for an evaluation's pictures."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from edgevis.training.images import resized
from runtime.common.arrays import Array
from runtime.images.decode import Image

Colour = tuple[int, int, int]

GIVEN: Colour = (160, 160, 160)
RIGHT: Colour = (60, 170, 60)
WRONG: Colour = (60, 60, 220)

_FRAME, _GAP = 4, 12


def tile(image: Image, colour: Colour, *, height: int, width: int) -> Image:
    """The image at that size in a frame."""
    inner = resized(image, height, width)
    framed = cv2.copyMakeBorder(inner, *(_FRAME,) * 4, cv2.BORDER_CONSTANT, value=colour)
    return framed.astype(np.uint8, copy=False)


def painted(image: Image, mask: Array, colour: Colour, *, strength: float = 0.6) -> Image:
    """A copy with the pixels of the mask, (H, W) bool, in a colour that the image shows through."""
    picture = image.copy()
    picture[mask] = ((1 - strength) * picture[mask] + strength * np.array(colour)).astype(np.uint8)
    return picture


def beside(left: Sequence[Image], right: Sequence[Image]) -> Image:
    """Tiles of one height in a row, with a gap between left and right."""
    gap = np.full((left[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.hstack([*left, gap, *right])
