"""The pixels of each object of an image, for data that :mod:`edgevis.data.detection_split` reads.

- ``instances/STEM.png``, 8 or 16 bits, 0 is background: with ``boxes_xyxy.json`` the number k is its k-th box, with a
  table ``annotations.json`` the annotation's ``instance``; without either each number is an object of one class.
- COCO's JSON: ``segmentation`` of each annotation, see :mod:`edgevis.data.instances_coco`.

Where objects overlap, the smaller one has the pixel. An annotation without pixels of its own, such as one without a
mask, makes its box an ignored region.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevis.data.boxes import boxes_from_instances
from edgevis.data.detection import BoxLabels, DetectionImages, box_labels, clipped_labels
from edgevis.data.detection_coco import annotation_files
from edgevis.data.detection_split import layout_of
from edgevis.data.detection_tables import BOXES, INSTANCES, SAMPLE
from edgevis.data.files import by_stem
from edgevis.data.instances_coco import CocoShapes, read_shapes, without_masks
from edgevis.data.masks import read_pair
from runtime.errors import SourceError
from runtime.images.decode import Image

_MOST = (1 << 16) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """An image and the pixels of its objects.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        ids: (H, W) uint16: 0 is background, k the k-th object; an object may have lost all of its pixels.
        classes: (I,) int64 of the objects.
        ignored: (I,) bool: regions in which detections count neither as right nor as wrong.
    """

    image: Image
    ids: NDArray[np.uint16]
    classes: NDArray[np.int64]
    ignored: NDArray[np.bool_]

    def labels(self) -> tuple[BoxLabels, NDArray[np.int64]]:
        """The boxes around the pixels of the objects that have any, ends exclusive, and the numbers of these objects.

        Numbers count from 1, as ``ids`` do.
        """
        extents = boxes_from_instances(self.ids[None])
        numbers = np.unique(self.ids).astype(np.int64)
        numbers = numbers[numbers > 0]
        boxes = extents[:, 2:] + (0, 0, 1, 1)
        places = numbers - 1
        return box_labels(boxes, self.classes[places], ignored=self.ignored[places]), numbers


class LabelledInstances:
    """Images and the pixels of their objects of some classes. Decoded when asked for.

    Args:
        annotated: Images and boxes, with all classes of the data.
        classes: The names of those that are kept, in their order.

    Raises:
        SourceError: The data have no masks in a known layout, an image lacks its own, or they are not as described.
    """

    def __init__(self, annotated: DetectionImages, classes: tuple[str, ...]) -> None:
        self._data = annotated
        single = len(annotated.classes) == 1 and len(classes) == 1
        position = {name: number for number, name in enumerate(annotated.classes if single else classes)}
        self._class_of = np.array([position.get(name, -1) for name in annotated.classes], np.int64)
        self._read = _reader(annotated)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Instances:
        """One image.

        Raises:
            SourceError: It or its masks cannot be decoded, or they do not fit together.
        """
        image, rows = self._read(index)
        labels = self._data.labels[index]
        where = self._data.files.where(self._data.names[index])
        if int(rows.max(initial=0)) > len(labels):
            raise SourceError(f"the mask of {where} has the instance {rows.max()}; allowed: up to its {len(labels)}")
        clipped_labels(labels, image, where)  # refuses boxes of another size
        without = np.ones(len(labels) + 1, np.bool_)
        without[np.unique(rows)] = False
        classes = self._class_of[labels.classes]
        ignored = labels.ignored | without[1:]
        for place in np.flatnonzero(without[1:] & (classes >= 0)):
            x1, y1, x2, y2 = np.rint(np.clip(labels.boxes[place], 0, _MOST)).astype(int).tolist()
            region = rows[y1:y2, x1:x2]
            region[region == 0] = place + 1
        number = np.zeros(len(labels) + 1, np.uint16)
        kept = np.flatnonzero(classes >= 0)
        number[kept + 1] = np.arange(1, len(kept) + 1)
        return Instances(image, number[rows], classes[kept], ignored[kept])


_Reader = Callable[[int], tuple[Image, NDArray[np.uint16]]]
"""From an image's position to the image and (H, W) uint16: the annotation, counted from 1, that has each pixel."""


def _reader(data: DetectionImages) -> _Reader:
    files = data.files
    if any(len(labels) > _MOST for labels in data.labels):
        raise SourceError(f"{files.path}: an image has more than {_MOST} annotations")
    if not any(name.startswith(f"{INSTANCES}/") for name in files.names):
        if layout_of(files) != "coco":
            raise without_masks(files)
        return _drawn(data, read_shapes(files, annotation_files(files)))
    masks = by_stem(files, INSTANCES)
    stems = [name.rpartition("/")[2].rpartition(".")[0] for name in data.names]
    lacking = next((stem for stem in stems if stem not in masks), None)
    if lacking is not None:
        raise SourceError(f"{files.path} has no {files.inside}{INSTANCES}/{lacking}.*; each image needs it")
    listed = _instances_listed(data, stems) if SAMPLE in files.names else None

    def read(index: int) -> tuple[Image, NDArray[np.uint16]]:
        image, stored, _ = read_pair(files, data.names[index], masks[stems[index]])
        if stored.min(initial=0) < 0 or stored.max(initial=0) > _MOST:
            raise SourceError(f"{files.where(masks[stems[index]])} holds numbers beyond 16 bits")
        if listed is not None:
            row_of = np.zeros(_MOST + 1, np.uint16)
            row_of[listed[index]] = np.arange(1, len(listed[index]) + 1)
            row_of[0] = 0
            return image, row_of[stored]
        if BOXES in files.names:
            return image, stored.astype(np.uint16)
        _, places = np.unique(np.append(stored.ravel(), 0), return_inverse=True)
        return image, places[:-1].reshape(stored.shape).astype(np.uint16)

    return read


def _instances_listed(data: DetectionImages, stems: list[str]) -> list[NDArray[np.uint16]]:
    """Of each image (I,) uint16: the stored number of each annotation; 0 of one without a mask."""
    content, where = data.files.json(SAMPLE), data.files.where(SAMPLE)
    listed = []
    for stem in stems:
        numbers: list[int] = []
        for item in content["images"][stem]:  # whose form read_tables has checked
            instance = item.get("instance", 0)
            if type(instance) is not int or not 0 <= instance <= _MOST or (instance and instance in numbers):
                raise SourceError(
                    f"{where}: {stem} has the instance {instance!r}; allowed: 0, or a number up to {_MOST} of its own"
                )
            numbers.append(instance)
        listed.append(np.array(numbers, np.uint16))
    return listed


def _drawn(data: DetectionImages, shapes: list[CocoShapes]) -> _Reader:
    def read(index: int) -> tuple[Image, NDArray[np.uint16]]:
        image = data.files.image(data.names[index])
        where = data.files.where(data.names[index])
        return image, shapes[index].drawn((image.shape[0], image.shape[1]), where)

    return read
