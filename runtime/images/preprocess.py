"""The one interpreter of :class:`runtime.bundle.spec.Preprocess`: prediction, calibration and verification all use it.

A pixel has 256 values, so ``(pixel * scale - mean) / std`` is one table of 256 float32 per channel; OpenCV resizes in
uint8, splits the channels and looks each one up straight into its plane of the output tensor. That is about five times
faster than arithmetic in NumPy and, with the table computed in float64, correctly rounded
(``python -m benchmarks.preprocess`` measures it against the other ways).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import cv2
import numpy as np
import numpy.typing as npt

from runtime.bundle.spec import Preprocess
from runtime.common.arrays import Array
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


@dataclass(frozen=True, slots=True)
class InputGeometry:
    """Where an image lies in a graph's input.

    Attributes:
        rows, columns: The part of the image that is resized.
        height, width: The size that it is resized to.
        top, left: The place of its first row and column in the input: above 0 where it is padded, below where cut.
    """

    rows: slice
    columns: slice
    height: int
    width: int
    top: int = 0
    left: int = 0

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the input for a pixel of the image, along x and y: ``input = image * scale + offset``."""
        return (
            self.width / (self.columns.stop - self.columns.start),
            self.height / (self.rows.stop - self.rows.start),
        )

    @property
    def offset(self) -> tuple[float, float]:
        """The place of the image's left and upper edge in the input, x and y; pixel i covers i to i + 1."""
        scale_x, scale_y = self.scale
        return self.left - self.columns.start * scale_x, self.top - self.rows.start * scale_y

    def to_image(self, boxes: Array) -> npt.NDArray[np.float64]:
        """Map boxes xyxy (..., 4) or points x, y (..., 2) from pixels of the input to the image's, not clipped."""
        found = np.asarray(boxes, np.float64)
        pairs = found.shape[-1] // 2
        return np.asarray((found - np.array(self.offset * pairs)) / np.array(self.scale * pairs))

    def to_input(self, boxes: Array) -> npt.NDArray[np.float64]:
        """Map boxes xyxy (..., 4) from pixels of the image to pixels of the input, not clipped."""
        return np.asarray(np.asarray(boxes, np.float64) * np.array(self.scale * 2) + np.array(self.offset * 2))


class PreparedImages(Sequence[Image]):
    """Images with the input tensor that was made of them before they are predicted.

    Args:
        images: N images, each (H, W, 3) uint8 BGR.
        tensor: (N, channels, height, width) float32.
        maker: The preprocessor that made it; others make their own.
    """

    def __init__(self, images: Sequence[Image], tensor: npt.NDArray[np.float32], maker: Preprocessor) -> None:
        self._images, self.tensor, self.maker = images, tensor, maker

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> PreparedImages: ...

    def __getitem__(self, index: int | slice) -> Image | PreparedImages:
        if isinstance(index, slice):
            return PreparedImages(self._images[index], self.tensor[index], self.maker)
        return self._images[index]


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
        if isinstance(images, PreparedImages) and images.maker is self:
            return images.tensor
        spec = self.spec
        output = np.empty((len(images), spec.channels, spec.height, spec.width), np.float32)
        for image, planes in zip(images, output, strict=True):
            fitted = self.fit(image)
            channels = (cv2.cvtColor(fitted, cv2.COLOR_BGR2GRAY),) if spec.color == "GRAY" else cv2.split(fitted)
            for plane, (source, table) in zip(planes, self._channels, strict=True):
                cv2.LUT(channels[source], table, dst=plane)
        return output

    def prepare(self, images: Sequence[Image], *, at_most: int | None = None) -> Sequence[Image]:
        """The images with their input tensor, which this preprocessor gives instead of making it again.

        More than ``at_most`` come back as they are: what goes through the engine in parts is made in parts.
        """
        if at_most is not None and len(images) > at_most:
            return images
        return PreparedImages(images, self(images), self)

    def fit(self, image: Image) -> Image:
        """The image at the input's size, still (height, width, 3) uint8 BGR."""
        spec = self.spec
        if image.shape[:2] == (spec.height, spec.width):
            return image
        place = self.geometry((image.shape[0], image.shape[1]))
        resized = self._resize(image[place.rows, place.columns], place.width, place.height)
        if (place.height, place.width) == (spec.height, spec.width):
            return resized
        if spec.fit == "center-crop":
            return resized[-place.top : spec.height - place.top, -place.left : spec.width - place.left]
        output = np.full((spec.height, spec.width, 3), spec.pad_value, np.uint8)
        output[place.top : place.top + place.height, place.left : place.left + place.width] = resized
        return output

    def geometry(self, size: tuple[int, int]) -> InputGeometry:
        """Where an image of ``size`` (H, W) lies in the input."""
        spec = self.spec
        rows, columns = size
        every = (slice(0, rows), slice(0, columns))
        if spec.fit == "stretch" or size == (spec.height, spec.width):
            return InputGeometry(*every, spec.height, spec.width)
        ratios = (spec.width / columns, spec.height / rows)
        ratio = max(ratios) if spec.fit == "center-crop" else min(ratios)
        width, height = max(1, round(columns * ratio)), max(1, round(rows * ratio))
        if spec.fit == "letterbox":
            width, height = min(width, spec.width), min(height, spec.height)
            if spec.align == "top-left":
                # Detectors that are published with this placement were trained with sides cut to whole pixels.
                limit, side = (spec.width, columns) if ratios[0] <= ratios[1] else (spec.height, rows)
                return InputGeometry(*every, max(1, rows * limit // side), max(1, columns * limit // side))
            return InputGeometry(*every, height, width, (spec.height - height) // 2, (spec.width - width) // 2)
        if ratio < 1:
            # What is cut off need not be shrunk first: of a wide frame that is half of the work.
            seen = (_centre(rows, spec.height / ratio), _centre(columns, spec.width / ratio))
            return InputGeometry(*seen, spec.height, spec.width)
        middle = (_middle(rows, spec.height, ratio), _middle(columns, spec.width, ratio))
        if middle != every:
            inner = self.geometry((middle[0].stop - middle[0].start, middle[1].stop - middle[1].start))
            return replace(inner, rows=_within(middle[0], inner.rows), columns=_within(middle[1], inner.columns))
        width, height = max(width, spec.width), max(height, spec.height)
        return InputGeometry(*every, height, width, -((height - spec.height) // 2), -((width - spec.width) // 2))

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


def _within(outer: slice, inner: slice) -> slice:
    """A slice of a slice, as a slice of the whole."""
    return slice(outer.start + inner.start, outer.start + inner.stop)
