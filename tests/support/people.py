"""Persons to detect: the two photographs that the ready bundle of the person detector carries."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from runtime.bundle.bundle import Bundle
from runtime.images.decode import Image
from runtime.pipeline import DETECTOR
from runtime.verification.answers.compare import read_answers

FRAMES = 24


def photographs() -> tuple[Image, Image]:
    """Eileen Collins and Grace Hopper, (432, W, 3) uint8 BGR each."""
    answers = read_answers(Bundle(DETECTOR))
    assert answers is not None
    collins, hopper = answers.pictures[-2:]
    return collins, hopper


def write_people_video(path: Path) -> Path:
    """A video of :data:`FRAMES` frames, ten a second, in which both stand side by side before a camera that shakes."""
    both = np.hstack(photographs())
    height, width = both.shape[0] - 8, both.shape[1] - 8
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (width, height))
    for index in range(FRAMES):
        left, top = round(4 + 4 * np.sin(index)), round(4 + 4 * np.cos(index))
        writer.write(np.ascontiguousarray(both[top : top + height, left : left + width]))
    writer.release()
    return path
