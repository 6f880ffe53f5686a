"""Persons drawn as squares with patterns, whom the detector of :mod:`detection_bundles` finds, before a camera."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from runtime.pipeline import Pipeline
from runtime.streams.frame import Frame
from runtime.tracking.objects import TrackedObject

from bundles import Array, write_tiny_bundle
from detection_bundles import write_detector

SIDE = 40
ANN, BOB, EVE = 0, 1, 2
COLOURS = ((0, 0), (250, 0), (0, 120))  # blue and green beside the red
Placed = dict[int, tuple[int, int]]


def write_bundles(folder: Path) -> Path:
    """Write ``squares.edgevis``, which detects persons, and ``reid.edgevis``, which tells them apart."""
    write_detector(folder / "squares.edgevis")
    write_tiny_bundle(folder / "reid.edgevis")
    return folder


def person(number: int) -> Array:
    """A square that the detector takes for ``red``, with a pattern of its own."""
    pattern = np.zeros((10, 10, 3))
    pattern[..., :2] = COLOURS[number]
    pattern[..., 2] = 255 * (np.random.default_rng(number).random((10, 10)) > 0.25)
    return np.kron(pattern, np.ones((SIDE // 10, SIDE // 10, 1))).astype(np.uint8)


def image(placed: Placed) -> Array:
    """(320, 320, 3) uint8 with persons at cells (row, column) of 40 pixels."""
    picture = np.zeros((8 * SIDE, 8 * SIDE, 3), np.uint8)
    for number, (row, column) in placed.items():
        picture[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = person(number)
    return picture


class Camera:
    """Frames of one source at ten a second."""

    def __init__(self, source: int = 0) -> None:
        self.source, self.index = source, 0

    def show(self, placed: Placed, frames: int = 1) -> list[Frame]:
        made = []
        for _ in range(frames):
            made.append(Frame(image(placed), self.source, self.index, self.index / 10, 1000 + self.index / 10))
            self.index += 1
        return made


def last(pipeline: Pipeline, frames: Sequence[Frame]) -> tuple[TrackedObject, ...]:
    """What is tracked in the last of some frames, which are processed one by one."""
    return [pipeline.process([frame])[0] for frame in frames][-1]


def identities(objects: Sequence[TrackedObject]) -> dict[tuple[int, int], str]:
    """Identity by cell."""
    centres = [(item.box_xyxy[:2] + item.box_xyxy[2:]) / 2 // SIDE for item in objects]
    return {(int(row), int(column)): item.identity for (column, row), item in zip(centres, objects, strict=True)}
