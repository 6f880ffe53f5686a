"""The demo's photographs as a video: a camera that pans over them, and another camera that sees the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from calibration.data.samples import wheel_file
from edgevis import SourceError
from runtime.common.extras import install_command
from runtime.images.decode import Image, read_image
from runtime.streams.video_file import frames_per_second


class Box(NamedTuple):
    """A person's rectangle in pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def crop(self, image: Image) -> Image:
        """The person's part of ``image``."""
        return image[self.top : self.bottom, self.left : self.right]


_EXAMPLES = 8  # crops that a person is enrolled with

_GAINS = (0.80, 0.97, 1.12)  # blue, green, red
_GAMMA = 1.25


def by_another_camera(images: Iterable[Image]) -> Iterator[Image]:
    """The images as a second camera sees them: warmer, with another contrast, and with half the resolution.

    What is enrolled comes from the first camera. The second one is made in code, from the same frames.
    """
    levels = np.linspace(0, 1, 256)[:, None] ** _GAMMA * np.array(_GAINS)
    table = np.clip(255 * levels, 0, 255).astype(np.uint8)[None]
    for image in images:
        rows, columns = image.shape[:2]
        small = cv2.resize(image, (columns // 2, rows // 2), interpolation=cv2.INTER_AREA)
        yield np.asarray(cv2.resize(cv2.LUT(small, table), (columns, rows), interpolation=cv2.INTER_LINEAR), np.uint8)


# Photographs that wheels carry: package, file inside of it, who is seen (None: nobody), where (fractions of the sides).
_PHOTOS = (
    ("skimage", "data/astronaut.png", "Eileen Collins", (0.10, 0.00, 0.80, 1.00)),
    ("skimage", "data/camera.png", "a cameraman", (0.00, 0.10, 0.66, 1.00)),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "Grace Hopper", (0.20, 0.02, 1.00, 1.00)),
)
_ENROLLED = ("Eileen Collins", "Grace Hopper")


class PhotoPan:
    """A camera that pans over photographs while the light changes: real persons, without a file of our own.

    The two whose names are known are enrolled; the cameraman is a stranger.
    """

    name = "photographs from the wheels of scikit-image and Matplotlib"
    fps = 15.0
    size = (640, 432)
    length = 240

    def __init__(self) -> None:
        height = 540
        pictures, self.persons, x = [], [], 0
        for package, file, person, place in _PHOTOS:
            photo = photograph(package, file)
            picture = cv2.resize(photo, (round(photo.shape[1] * height / photo.shape[0]), height))
            if person is not None and place is not None:
                width = picture.shape[1]
                corners = (x + place[0] * width, place[1] * height, x + place[2] * width, place[3] * height)
                self.persons.append((person, Box(*(round(value) for value in corners))))
            pictures.append(picture)
            x += picture.shape[1]
        self.canvas = np.hstack(pictures).astype(np.uint8)

    def examples(self) -> Iterator[tuple[str, list[Image]]]:
        """The persons to enrol, each with a name and some crops."""
        rng = np.random.default_rng(0)
        for person, box in self.persons:
            if person in _ENROLLED:
                yield person, [self._example(box, rng) for _ in range(_EXAMPLES)]

    def frames(self) -> Iterator[Image]:
        """(432, 640, 3) uint8 BGR each, from the first."""
        width, height = self.size
        rows, columns = self.canvas.shape[:2]
        rng = np.random.default_rng(1)
        for index in range(self.length):
            turn = index / (self.length - 1)
            phase = 0.5 - 0.5 * np.cos(np.pi * turn)  # a camera starts and stops slowly
            zoom = 1.12 + 0.12 * np.sin(9 * turn)
            w, h = width * zoom, height * zoom
            left = (columns - w) * phase
            top = (rows - h) * (0.5 + 0.4 * np.sin(5 * turn))
            window = np.array([[w / width, 0, left], [0, h / height, top]])
            image = cv2.warpAffine(self.canvas, window, (width, height), flags=cv2.INTER_AREA | cv2.WARP_INVERSE_MAP)
            light = 1.0 + 0.25 * np.sin(14 * turn), 10 * np.sin(23 * turn)
            noise = rng.normal(0, 3, image.shape)
            yield np.clip(image * light[0] + light[1] + noise, 0, 255).astype(np.uint8)

    def _example(self, box: Box, rng: np.random.Generator) -> Image:
        jitter = rng.uniform(-0.06, 0.06, 4) * (box.right - box.left)
        rows, columns = self.canvas.shape[:2]
        moved = Box(
            max(0, round(box.left + jitter[0])),
            max(0, round(box.top + jitter[1])),
            min(columns, round(box.right + jitter[2])),
            min(rows, round(box.bottom + jitter[3])),
        )
        light = rng.uniform(0.75, 1.25)
        return np.asarray(np.clip(moved.crop(self.canvas) * light, 0, 255), np.uint8)


def frame_rate(path: Path) -> float:
    """Frames per second of a video; SourceError when OpenCV cannot decode it."""
    return frames_per_second(path) or 25.0


def photograph(package: str, file: str) -> Image:
    """A photograph that an installed package carries; SourceError when it is not there."""
    path = wheel_file(package, file)
    if path is None:
        raise SourceError(f"the photograph {package}/{file} is not installed: {install_command('export')}")
    return read_image(path)
