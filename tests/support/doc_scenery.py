"""The files that the README and the pages in docs/ name: images, masks, videos and bundles."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.video_scenes import PhotoPan, photograph
from calibration.data.samples import samples_from_photographs
from runtime.images.decode import Image

from built import small_bundle
from training_data import write_boxes

BUNDLES = ("osnet-x0-25", "efficientnet-lite0", "prior-net", "enet")
"""The bundles that pages name: Re-ID with the weights that ship, the other three small and with random weights."""


def write_scenery(folder: Path) -> Path:
    """Write all that pages read, except bundles: two persons, a camera's video, objects with masks."""
    folder.mkdir()
    portraits = dict(PhotoPan().examples())
    for name, person in (("alice", "Eileen Collins"), ("bob", "Grace Hopper")):
        for number in (1, 2):
            _write(folder / f"{name}-{number}.jpg", portraits[person][number])
    seen = [cv2.resize(image, (240, 480)) for image in portraits["Grace Hopper"][3:7]]
    _write(folder / "person.jpg", seen[0])
    for number, image in enumerate(seen):
        _write(folder / "door" / f"{number}.jpg", image)
    _video(folder / "door.mp4", seen)
    samples = samples_from_photographs(height=160, width=120, count=24)
    others = samples_from_photographs(height=160, width=120, count=32)
    strangers = [
        image
        for label, image in zip(others.labels, others.images, strict=True)
        if label not in ("astronaut", "grace_hopper")  # who are enrolled
    ]
    for number, image in enumerate(strangers):
        _write(folder / "strangers" / f"{number}.jpg", cv2.resize(image, (240, 480)))
    _video(folder / "empty-hour.mp4", list(_strangers_hour()))
    objects = samples_from_photographs(height=120, width=160, count=3).with_masks()
    for name, image, mask in zip(("mug-1", "mug-2", "desk"), objects.images, objects.masks, strict=True):
        _write(folder / f"{name}.jpg", image)
        _write(folder / f"{name}.png", mask.astype(np.uint8) * 255)
    _write(folder / "desk" / "1.jpg", objects.images[2])
    for number in (1, 2, 3):
        for label in ("apple", "pear"):
            image = samples.images[number + (8 if label == "pear" else 0)]
            _write(folder / f"{label}-{number}.jpg", cv2.resize(image, (160, 160)))
    _write(folder / "basket.jpg", cv2.resize(samples.images[3], (160, 160)))
    _write(folder / "cells.png", objects.images[0])
    write_boxes(folder / "shelf")
    return folder


def _strangers_hour(length: int = 110) -> Iterator[Image]:
    """(432, 640, 3) frames of a camera that pans over a cameraman and his mirror image; nobody enrolled is seen."""
    photo = cv2.resize(photograph("skimage", "data/camera.png"), (432, 432))
    canvas = np.hstack([photo, photo[:, ::-1]])
    for left in np.linspace(0, canvas.shape[1] - 640, length).round().astype(int).tolist():
        yield np.asarray(canvas[:, left : left + 640], np.uint8)


def link_bundles(factory: pytest.TempPathFactory, folder: Path, names: Sequence[str] = BUNDLES) -> None:
    """Put copies of the bundles, whose files are links to the run's, into ``folder / "bundles"``."""
    for name in names:
        source = small_bundle(factory, name)
        shutil.copytree(source, folder / "bundles" / f"{name}.edgevis", copy_function=os.link)


def _write(path: Path, image: Image) -> None:
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), image)


def _video(path: Path, images: Sequence[Image]) -> None:
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (width, height))
    for image in images:
        writer.write(image)
    writer.release()
