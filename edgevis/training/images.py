"""Decoded images kept in memory: an epoch sees the same files again, and decoding costs more than augmenting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.images.decode import Image

MAX_BYTES = 2 << 30

# Larger than the input: a crop of half the area is then still about as large as it.
_MARGIN = 1.3

Pixels = TypeVar("Pixels", bound=NDArray[Any])


class ImageStore(Generic[Pixels]):
    """Images, or their masks, by their number, read when first asked for.

    An evaluation's are to be resized by :meth:`runtime.images.preprocess.Preprocessor.fit` alone, as a predictor does:
    of an image that was shrunk before, OSNet's embedding has a cosine of 0.994 to the predictor's.

    Args:
        read: From a number to an image, (H, W, 3) uint8 BGR, or a mask, (H, W), made no larger than needed.
        max_bytes: What is kept together; what does not fit is read each time.
    """

    def __init__(self, read: Callable[[int], Pixels], *, max_bytes: int = MAX_BYTES) -> None:
        self._read, self._left = read, max_bytes
        self._kept: dict[int, Pixels] = {}

    def __getitem__(self, number: int) -> Pixels:
        """The image; SourceError when it cannot be decoded. It must not be written to."""
        if number in self._kept:
            return self._kept[number]
        image = cast(Pixels, np.ascontiguousarray(self._read(number)))  # part of a larger one would keep all of it
        if image.nbytes <= self._left:
            self._kept[number] = image
            self._left -= image.nbytes
        return image


def resized(image: Image, height: int, width: int) -> Image:
    """The image at another size: areas averaged where it shrinks, linear where it grows."""
    shrinks = image.shape[0] > height or image.shape[1] > width
    result = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return result.astype(np.uint8, copy=False)


def for_crops(image: Image, height: int, width: int) -> Image:
    """The image as :class:`ImageStore` keeps it where random crops become ``height`` x ``width``."""
    return shrunk(image, math.ceil(_MARGIN * max(height, width)))


def shrunk(image: Image, short_side: int) -> Image:
    """The image, shrunk if needed so that its short side has at most that many pixels."""
    height, width = image.shape[:2]
    share = short_side / min(height, width)
    if share >= 1:
        return image
    return resized(image, max(1, round(height * share)), max(1, round(width * share)))
