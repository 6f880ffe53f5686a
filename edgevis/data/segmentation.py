"""Images with a mask each: class ids of every pixel, or the ids of instances and their boxes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevis.data.files import Files, by_stem, open_files
from edgevis.data.masks import as_class_ids, read_pair
from edgevis.data.splits import rows_of_split
from runtime.common.json_data import shown
from runtime.errors import SourceError
from runtime.images.decode import Image
from runtime.images.header import read_header


@dataclass(frozen=True, slots=True, eq=False)
class MaskedImages:
    """Paths of images and of their masks; both are decoded when asked for. May serve as a PyTorch data set.

    Attributes:
        files: Where they lie.
        stems: N names, without folder and suffix.
        images, masks: N paths each.
        volumes: N names of the volume that an image is a slice of; the stem where the data has no volumes.
    """

    files: Files
    stems: tuple[str, ...]
    images: tuple[str, ...]
    masks: tuple[str, ...]
    volumes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image, NDArray[np.uint8]]:
        """One image, (H, W, 3) uint8 BGR, and its class ids, (H, W) uint8.

        Raises:
            SourceError: One of them cannot be decoded, or they are not equally large.
        """
        names = self.images[index], self.masks[index]
        image, mask, _ = read_pair(self.files, *names)
        return image, as_class_ids(mask, self.files.where(names[1]))


@dataclass(frozen=True, slots=True, eq=False)
class InstanceImages:
    """Paths of images and instance masks, and boxes. May serve as a PyTorch data set.

    Attributes:
        files: Where they lie.
        images, instances: N paths each.
        boxes: N arrays (I, 4) int64: x1, y1, x2, y2 of each instance in pixels, the ends **inclusive**.
        volumes: N names of the volume that an image is a slice of; the stem where the data has no volumes.
    """

    files: Files
    images: tuple[str, ...]
    instances: tuple[str, ...]
    boxes: tuple[NDArray[np.int64], ...]
    volumes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image, NDArray[np.uint16], NDArray[np.int64]]:
        """One image, (H, W, 3) uint8 BGR, its instance ids (0 is background), (H, W) uint16, and its boxes, (I, 4).

        Raises:
            SourceError: An image or mask cannot be decoded, they are not equally large, or a box leaves them.
        """
        names = self.images[index], self.instances[index]
        image, mask, _ = read_pair(self.files, *names)
        boxes = self.boxes[index]
        if (boxes[:, 2:] >= (mask.shape[1], mask.shape[0])).any():
            raise SourceError(
                f"{self.files.where(names[0])} is {mask.shape[1]}x{mask.shape[0]}; a box reaches beyond it"
            )
        return image, mask.astype(np.uint16, copy=False), boxes


def read_masked_images(path: str | os.PathLike[str], *, split: str | None = None) -> MaskedImages:
    """The pairs ``images/STEM.*`` and ``masks/STEM.png`` of a folder or zip, sorted by stem.

    Args:
        path: A folder or zip; with ``split`` it needs ``index.csv`` with the columns ``stem`` and ``split``. Where
            that has a column ``volume`` (slices of 3-D images), :attr:`MaskedImages.volumes` takes it.
        split: Only these; None for all.

    Raises:
        SourceError: There is no such folder or zip, an image has no mask, the index names an image that is not there,
            or nothing fits.
    """
    files = open_files(path)
    return masked_images(files, index_rows(files, split))


def masked_images(files: Files, rows: Sequence[Mapping[str, str]]) -> MaskedImages:
    """The pairs that rows of ``index.csv`` name, in their order; errors as of :func:`read_masked_images`."""
    stems, volumes = _names(rows)
    images, masks = (_paths(files, folder, stems) for folder in ("images", "masks"))
    return MaskedImages(files, stems, images, masks, volumes)


def read_instances(path: str | os.PathLike[str], *, split: str | None = None) -> InstanceImages:
    """The pairs ``images/STEM.*`` and ``instances/STEM.png`` with ``boxes_xyxy.json``, sorted by stem.

    The JSON file gives each stem a list of ``[x0, y0, x1, y1]`` with exclusive ends; they become inclusive here.

    Args:
        path: A folder or zip; with ``split`` it needs ``index.csv`` with the columns ``stem`` and ``split``.
        split: Only these; None for all.

    Raises:
        SourceError: There is no such folder or zip, an image lacks its mask or its boxes, a box is empty or is not
            four whole numbers, or nothing fits.
    """
    files = open_files(path)
    return instance_images(files, index_rows(files, split))


def instance_images(files: Files, rows: Sequence[Mapping[str, str]]) -> InstanceImages:
    """The pairs that rows of ``index.csv`` name, in their order; errors as of :func:`read_instances`."""
    stems, volumes = _names(rows)
    images, instances = (_paths(files, folder, stems) for folder in ("images", "instances"))
    return InstanceImages(files, images, instances, inclusive_boxes(files, stems), volumes)


def inclusive_boxes(files: Files, stems: Sequence[str]) -> tuple[NDArray[np.int64], ...]:
    """The boxes of ``boxes_xyxy.json`` for each stem, (I, 4) int64, inclusive; errors as of :func:`read_instances`."""
    table = files.json("boxes_xyxy.json")
    if not isinstance(table, dict):
        raise SourceError(f"{files.where('boxes_xyxy.json')} is not an object of stems")
    return tuple(_inclusive(table.get(stem), f"{stem} in {files.where('boxes_xyxy.json')}") for stem in stems)


def index_rows(files: Files, split: str | None = None) -> list[dict[str, str]]:
    """The rows of ``index.csv``, sorted by ``stem``; without such a table a row for each image.

    Raises:
        SourceError: The table cannot be read, lacks a column, or no row fits ``split``.
    """
    if "index.csv" not in files.names and split is None:
        return [{"stem": stem} for stem in sorted(by_stem(files, "images"))]
    return sorted(rows_of_split(files, "index.csv", ("stem",), split), key=lambda row: row["stem"])


def outside(data: InstanceImages, progress: Callable[[int, int], None]) -> list[str]:
    """Sentences on images with a box that exceeds the image; sizes are read from the headers, nothing is decoded.

    Args:
        data: Images and boxes.
        progress: Told how many images are read, of how many.

    Raises:
        SourceError: An image cannot be read.
    """
    sentences = []
    for position, (name, boxes) in enumerate(zip(data.images, data.boxes, strict=True)):
        progress(position, len(data))
        if len(boxes):
            header = read_header(data.files.read(name), data.files.where(name))
            turned = header.orientation >= 5  # stored on its side
            size = (header.height, header.width) if turned else (header.width, header.height)
            beyond = boxes[(boxes[:, 2:] >= size).any(1)]
            if len(beyond):
                x0, y0, x1, y1 = (beyond[0] + (0, 0, 1, 1)).tolist()
                sentences.append(f"{name} has {size[0]}x{size[1]} pixels and the box [{x0}, {y0}, {x1}, {y1}]")
    progress(len(data), len(data))
    return sentences


def _names(rows: Sequence[Mapping[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The stems and their volumes."""
    return tuple(row["stem"] for row in rows), tuple(row.get("volume") or row["stem"] for row in rows)


def _paths(files: Files, folder: str, stems: Sequence[str]) -> tuple[str, ...]:
    paths = by_stem(files, folder)
    for stem in stems:
        if stem not in paths:
            raise SourceError(f"{files.path} has no {files.inside}{folder}/{stem}.*; each image needs it")
    return tuple(paths[stem] for stem in stems)


def _inclusive(boxes: object, where: str) -> NDArray[np.int64]:
    allowed = "a list of [x0, y0, x1, y1], whole numbers with 0 <= x0 < x1 and 0 <= y0 < y1"
    refused = SourceError(f"the boxes of {where} are not {allowed}: {shown(boxes)}")
    if not isinstance(boxes, list) or not all(isinstance(box, list) and len(box) == 4 for box in boxes):
        raise refused
    # type(), not isinstance: True is an int, too. The bound keeps them within an int64.
    if not all(type(value) is int and 0 <= value < 1 << 31 for box in boxes for value in box):
        raise refused
    table = np.array(boxes, np.int64).reshape(-1, 4)
    if (table[:, 2:] <= table[:, :2]).any():
        raise refused
    table[:, 2:] -= 1
    return table
