"""The scenes of the demo: a video of persons before a fixed camera, or photographs that a camera pans over.

Neither needs a detector: before a fixed camera a person is what moves, and in the panned photographs the persons' boxes
are known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from calibration.data.samples import wheel_file
from edgevis import SourceError
from runtime.common.extras import install_command
from runtime.images.decode import Image, read_image
from runtime.streams.reader import frames
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


@dataclass(frozen=True, slots=True)
class View:
    """One frame and the persons in it."""

    image: Image
    boxes: tuple[Box, ...]


_EXAMPLES = 8  # crops that a person is enrolled with
_EMPTY_LOOKS = 5  # so many looks without anybody end a visit


class VideoScene(Protocol):
    """The protocol of a scene: examples to enrol, and frames to predict on."""

    name: str
    fps: float

    def examples(self) -> Iterator[tuple[str, list[Image]]]:
        """Persons to enrol, each with a name and some crops."""
        ...

    def views(self) -> Iterator[View]:
        """The frames, from the first."""
        ...


@dataclass
class FixedCamera:
    """A video of a camera that does not move and whose first second shows nobody: what differs later is a person.

    Args:
        path: The video.
        stride: Look at each ``stride``-th frame.
        max_frames: Stop after this many frames of the video.
    """

    path: Path
    stride: int = 2
    max_frames: int = 1800
    name: str = field(init=False)
    fps: float = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.path.name
        self.fps = frame_rate(self.path) / self.stride

    def examples(self) -> Iterator[tuple[str, list[Image]]]:
        """One entry for each visit: a stretch of frames with one person, all of them in the picture."""
        visit: list[Image] = []
        count = empty = 0
        for view in chain(self.views(), [View(np.empty((0, 0, 3), np.uint8), ())] * _EMPTY_LOOKS):
            rows = view.image.shape[0]
            whole = [box for box in view.boxes if box.bottom < rows - 2 and box.bottom - box.top > rows / 2]
            visit += [box.crop(view.image).copy() for box in whole if len(view.boxes) == 1]
            empty = 0 if view.boxes else empty + 1
            if empty >= _EMPTY_LOOKS:
                if len(visit) >= 2 * _EXAMPLES:
                    count += 1
                    yield f"person {count}", [visit[i] for i in np.linspace(0, len(visit) - 1, _EXAMPLES).astype(int)]
                visit = []

    def views(self) -> Iterator[View]:
        images = self._frames()
        start = list(islice(images, max(3, round(self.fps))))
        background = np.asarray(cv2.blur(np.median(np.stack(start), axis=0).astype(np.uint8), (3, 3)), np.uint8)
        for image in chain(start, images):
            yield View(image, _moved(image, background))

    def _frames(self) -> Iterator[Image]:
        return islice(frames(self.path), 0, self.max_frames, self.stride)


def _moved(image: Image, background: Image) -> tuple[Box, ...]:
    difference = cv2.absdiff(cv2.blur(image, (3, 3)), background).max(axis=2)
    moved = (difference > 36).astype(np.uint8)
    moved = cv2.morphologyEx(moved, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    moved = cv2.morphologyEx(moved, cv2.MORPH_CLOSE, np.ones((25, 15), np.uint8))
    _, _, parts, _ = cv2.connectedComponentsWithStats(moved)
    rows, columns = image.shape[:2]
    boxes = []
    for left, top, width, height, area in parts[1:]:
        if height < rows * 0.25 or not 0.15 < width / height < 1.2 or area < 0.25 * width * height:
            continue
        pad = round(0.05 * height)
        boxes.append(
            Box(max(0, left - pad), max(0, top - pad), min(columns, left + width + pad), min(rows, top + height + pad))
        )
    return tuple(sorted(boxes, key=lambda box: (box.left - box.right) * (box.bottom - box.top)))


class OtherCamera:
    """A scene through a second camera: warmer, with another contrast, and with half the resolution.

    What is enrolled comes from the first camera. The second one is made in code, from the same frames.
    """

    _GAINS = (0.80, 0.97, 1.12)  # blue, green, red
    _GAMMA = 1.25

    def __init__(self, scene: VideoScene) -> None:
        self.name = f"{scene.name}, by a second camera"
        self.fps = scene.fps
        self._scene = scene
        levels = np.linspace(0, 1, 256)[:, None] ** self._GAMMA * np.array(self._GAINS)
        self._table = np.clip(255 * levels, 0, 255).astype(np.uint8)[None]

    def examples(self) -> Iterator[tuple[str, list[Image]]]:
        """From the first camera."""
        return self._scene.examples()

    def views(self) -> Iterator[View]:
        for view in self._scene.views():
            rows, columns = view.image.shape[:2]
            small = cv2.resize(view.image, (columns // 2, rows // 2), interpolation=cv2.INTER_AREA)
            image = cv2.resize(cv2.LUT(small, self._table), (columns, rows), interpolation=cv2.INTER_LINEAR)
            yield View(np.asarray(image, np.uint8), view.boxes)


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
        rng = np.random.default_rng(0)
        for person, box in self.persons:
            if person in _ENROLLED:
                yield person, [self._example(box, rng) for _ in range(_EXAMPLES)]

    def views(self) -> Iterator[View]:
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
            image = np.clip(image * light[0] + light[1] + noise, 0, 255).astype(np.uint8)
            boxes = (self._seen(box, left, top, w / width) for _, box in self.persons)
            yield View(image, tuple(box for box in boxes if box is not None))

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

    def _seen(self, box: Box, left: float, top: float, scale: float) -> Box | None:
        """The box in the frame, if at least two thirds of it are inside."""
        width, height = self.size
        x0, x1 = (box.left - left) / scale, (box.right - left) / scale
        y0, y1 = (box.top - top) / scale, (box.bottom - top) / scale
        inside = Box(max(0, round(x0)), max(0, round(y0)), min(width, round(x1)), min(height, round(y1)))
        if inside.right - inside.left < (x1 - x0) * 2 / 3 or inside.bottom - inside.top < (y1 - y0) * 2 / 3:
            return None
        return inside


def frame_rate(path: Path) -> float:
    """Frames per second of a video; SourceError when OpenCV cannot decode it."""
    return frames_per_second(path) or 25.0


def photograph(package: str, file: str) -> Image:
    """A photograph that an installed package carries; SourceError when it is not there."""
    path = wheel_file(package, file)
    if path is None:
        raise SourceError(f"the photograph {package}/{file} is not installed: {install_command('export')}")
    return read_image(path)
