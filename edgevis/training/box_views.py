"""Random views of images with boxes, at a detector's input size.

Draws are the same on every platform. Images are resized by the predictor's own preprocessing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgevis.data.detection import BoxLabels, concatenated
from edgevis.data.rng import below
from runtime.bundle.spec import Preprocess
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor

_LEAST_SIDE = 2.0
"""Pixels of the input: boxes with a shorter side are dropped."""


@dataclass(frozen=True, slots=True, eq=False)
class BoxView:
    """An image and its boxes.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        labels: In the image's pixels.
    """

    image: Image
    labels: BoxLabels


@dataclass(frozen=True, slots=True)
class Axis:
    """One side of a view: ``seen`` pixels from ``first`` become ``size`` pixels from ``place``."""

    first: int
    seen: int
    place: int
    size: int


@dataclass(frozen=True, slots=True)
class Placement:
    """The part of an image that is seen, and where in the input it lies.

    Attributes:
        x, y: Columns and rows.
        spec: Size of the input, interpolation and padding.
    """

    x: Axis
    y: Axis
    spec: Preprocess

    def placed(self, image: Image) -> Image:
        """The input's picture, (H, W, 3) uint8."""
        seen = self._seen(image)
        canvas = np.full((self.spec.height, self.spec.width, 3), self.spec.pad_value, np.uint8)
        self._inside(canvas)[:] = _resized(seen, self.y.size, self.x.size, self.spec)
        return canvas

    def placed_ids(self, ids: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """The input's numbers, (H, W) uint16: those of the nearest pixels, 0 beside the image."""
        canvas = np.zeros((self.spec.height, self.spec.width), np.uint16)
        size = (self.x.size, self.y.size)
        self._inside(canvas)[:] = cv2.resize(self._seen(ids), size, interpolation=cv2.INTER_NEAREST_EXACT)
        return canvas

    def _seen(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return pixels[self.y.first : self.y.first + self.y.seen, self.x.first : self.x.first + self.x.seen]

    def _inside(self, canvas: NDArray[Any]) -> NDArray[Any]:
        return canvas[self.y.place : self.y.place + self.y.size, self.x.place : self.x.place + self.x.size]


def random_scale_crop(
    view: BoxView, draw: random.Random, spec: Preprocess, *, scale: Sequence[float], visible: float
) -> BoxView:
    """The image scaled at random and cropped or padded to the input's size, at a random place.

    Args:
        view: Of any size.
        draw: The random numbers.
        spec: Size of the input, interpolation and padding.
        scale: The least and the largest factor beyond fitting the image into the input; 1 shows all of it.
        visible: The least share of a box's area that must stay inside; a box of which less is left becomes an ignored
            region.
    """
    placement = random_placement(view.image, draw, spec, scale=scale)
    x, y = placement.x, placement.y
    boxes = (view.labels.boxes - np.array([x.first, y.first] * 2, np.float32)) * np.array(
        [x.size / x.seen, y.size / y.seen] * 2, np.float32
    )
    boxes += np.array([x.place, y.place] * 2, np.float32)
    region = (x.place, y.place, x.place + x.size, y.place + y.size)
    return BoxView(placement.placed(view.image), _inside(view.labels.with_boxes(boxes), region, visible))


def random_placement(image: Image, draw: random.Random, spec: Preprocess, *, scale: Sequence[float]) -> Placement:
    """Which part of an image is seen where in the input, see :func:`random_scale_crop`."""
    rows, columns = image.shape[:2]
    least, most = scale
    ratio = (least + (most - least) * draw.random()) * min(spec.height / rows, spec.width / columns)
    # The part that is seen is cut out before it is resized: an enlarged image need not be made as a whole.
    y, x = (_placed(length, size, ratio, draw, spec) for length, size in ((rows, spec.height), (columns, spec.width)))
    return Placement(x, y, spec)


def flipped_view(view: BoxView, draw: random.Random) -> BoxView:
    """Left and right exchanged in half of the cases."""
    if draw.random() >= 0.5:
        return view
    width = view.image.shape[1]
    boxes = view.labels.boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1], np.float32)
    boxes += np.array([width, 0, width, 0], np.float32)
    return BoxView(np.ascontiguousarray(view.image[:, ::-1]), view.labels.with_boxes(boxes))


def mosaic(views: Sequence[BoxView], draw: random.Random, spec: Preprocess) -> BoxView:
    """Four images around a random point, twice the input's size (Bochkovskiy, Wang, Liao, "YOLOv4", 2020).

    Args:
        views: Four, of any size; each fills the input and is cut where it leaves the picture.
        draw: The random numbers.
        spec: Size of the input, interpolation and padding.
    """
    size_x, size_y = 2 * spec.width, 2 * spec.height
    middle_x, middle_y = (round(size * (0.25 + 0.5 * draw.random())) for size in (size_x, size_y))
    canvas = np.full((size_y, size_x, 3), spec.pad_value, np.uint8)
    parts = []
    for number, view in enumerate(views):
        rows, columns = view.image.shape[:2]
        ratio = min(spec.height / rows, spec.width / columns)
        tall, wide = max(1, round(rows * ratio)), max(1, round(columns * ratio))
        image = _resized(view.image, tall, wide, spec)
        left = middle_x - wide if number % 2 == 0 else middle_x
        top = middle_y - tall if number < 2 else middle_y
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + wide, size_x), min(top + tall, size_y)
        canvas[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]
        boxes = view.labels.boxes * np.array([wide / columns, tall / rows] * 2, np.float32)
        moved = view.labels.with_boxes(boxes + np.array([left, top] * 2, np.float32))
        parts.append(_inside(moved, (x0, y0, x1, y1), 0.0))
    return BoxView(canvas, concatenated(parts))


def _placed(length: int, available: int, ratio: float, draw: random.Random, spec: Preprocess) -> Axis:
    seen = min(length, max(1, math.ceil(available / ratio)))
    exact = seen * ratio
    # As Preprocessor.geometry does; the sum is for products such as 95.999999 that stand for 96.
    whole = math.floor(exact + 1e-6) if spec.align == "top-left" else round(exact)
    size = min(available, max(1, whole))
    return Axis(below(draw, length - seen + 1), seen, below(draw, available - size + 1), size)


def _resized(image: Image, height: int, width: int, spec: Preprocess) -> Image:
    return Preprocessor(Preprocess(height, width, interpolation=spec.interpolation)).fit(image)


def _inside(labels: BoxLabels, region: tuple[int, int, int, int], visible: float) -> BoxLabels:
    """The boxes clipped to a region; those too little of which is left are ignored, tiny ones dropped."""
    before = labels.boxes
    low, high = np.array(region[:2] * 2, np.float32), np.array(region[2:] * 2, np.float32)
    boxes = np.clip(before, low, high)
    sides = boxes[:, 2:] - boxes[:, :2]
    whole = (before[:, 2:] - before[:, :2]).prod(1)
    share = sides.prod(1) / np.maximum(whole, 1e-6)
    clipped = BoxLabels(boxes, labels.classes, labels.weights, labels.ignored | (share < visible))
    return clipped[np.all(sides >= _LEAST_SIDE, axis=1)]
