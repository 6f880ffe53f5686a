"""The one interpreter of :class:`runtime.bundle.spec.Preprocess`: prediction, calibration and verification all use it.

A pixel has 256 values, so ``(pixel * scale - mean) / std`` is one table of 256 float32 per channel; OpenCV resizes in
uint8, splits the channels and looks each one up straight into its plane of the output tensor. That is about five times
faster than arithmetic in NumPy and, with the table computed in float64, correctly rounded
(``python -m benchmarks.preprocess`` measures it against the other ways).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from runtime.bundle.spec import Preprocess
from runtime.images.decode import Image

_INTERPOLATION = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}
# Which channel of the image, BGR or its luma alone, each channel of the output is made of.
_SOURCES = {"RGB": (2, 1, 0), "BGR": (0, 1, 2), "GRAY": (0,)}

# If the resized side would be more than this many times its seen part, only the middle is resized: a
# detector's box of one row across a frame would otherwise become hundreds of megabytes.
_MAX_COVER = 64


class Preprocessor:
    """Converts images to the input tensor of a graph. Calls do not change it: threads may share it."""

    def __init__(self, spec: Preprocess) -> None:
        self.spec = spec
        pixel = np.arange(256, dtype=np.float64)
        tables = [
            ((pixel * spec.scale - mean) / std).astype(np.float32)
            for mean, std in zip(spec.mean, spec.std, strict=True)
        ]
        self._channels = tuple(zip(_SOURCES[spec.color], tables, strict=True))

    def __call__(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        """Args: N images, each (H, W, 3) uint8 BGR. Returns: (N, channels, height, width) float32."""
        spec = self.spec
        output = np.empty((len(images), spec.channels, spec.height, spec.width), np.float32)
        for image, planes in zip(images, output, strict=True):
            fitted = self.fit(image)
            channels = (cv2.cvtColor(fitted, cv2.COLOR_BGR2GRAY),) if spec.color == "GRAY" else cv2.split(fitted)
            for plane, (source, table) in zip(planes, self._channels, strict=True):
                cv2.LUT(channels[source], table, dst=plane)
        return output

    def fit(self, image: Image) -> Image:
        """The image at the input's size, still (height, width, 3) uint8 BGR."""
        spec = self.spec
        rows, columns = image.shape[:2]
        if (rows, columns) == (spec.height, spec.width):
            return image
        if spec.fit == "stretch":
            return self._resize(image, spec.width, spec.height)
        ratios = (spec.width / columns, spec.height / rows)
        ratio = max(ratios) if spec.fit == "center-crop" else min(ratios)
        if spec.fit == "center-crop" and ratio < 1:
            # What is cut off need not be shrunk first: of a wide frame that is half of the work.
            seen = image[_centre(rows, spec.height / ratio), _centre(columns, spec.width / ratio)]
            return self._resize(seen, spec.width, spec.height)
        width, height = max(1, round(columns * ratio)), max(1, round(rows * ratio))
        if spec.fit == "center-crop":
            middle = image[_middle(rows, spec.height, ratio), _middle(columns, spec.width, ratio)]
            if middle.size < image.size:
                return self.fit(middle)
            width, height = max(width, spec.width), max(height, spec.height)
            left, top = (width - spec.width) // 2, (height - spec.height) // 2
            return self._resize(image, width, height)[top : top + spec.height, left : left + spec.width]
        width, height = min(width, spec.width), min(height, spec.height)
        left, top = (spec.width - width) // 2, (spec.height - height) // 2
        output = np.full((spec.height, spec.width, 3), spec.pad_value, np.uint8)
        output[top : top + height, left : left + width] = self._resize(image, width, height)
        return output

    def _resize(self, image: Image, width: int, height: int) -> Image:
        resized = cv2.resize(image, (width, height), interpolation=_INTERPOLATION[self.spec.interpolation])
        return resized.astype(np.uint8, copy=False)


def _centre(length: int, seen: float) -> slice:
    """The ``seen`` middle pixels of a side, to the nearest whole one."""
    visible = min(length, max(1, round(seen)))
    first = (length - visible) // 2
    return slice(first, first + visible)


def _middle(length: int, seen: int, ratio: float) -> slice:
    """The part of a side that is resized: equal amounts are cut at both ends, so that the centre stays."""
    cut = max(0, length - math.ceil(_MAX_COVER * seen / ratio)) // 2
    return slice(cut, length - cut)
