"""Images with boxes: what the readers of detection data sets return.

Layouts, told apart by their files: COCO's JSON (:mod:`edgevis.data.detection_coco`), PASCAL VOC's folders
(:mod:`edgevis.data.detection_voc`), and tables of boxes or masks (:mod:`edgevis.data.detection_tables`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgevis.data.files import Files
from edgevis.data.splits import Role
from runtime.errors import InputError, SourceError
from runtime.images.decode import Image

MAX_BOXES = 10_000
"""The largest number of boxes that an image may have."""

MAX_CLASSES = 1000

_BEYOND = 0.02
"""How far a box may exceed its image, as a share of the image's side, before it counts as an error; it is clipped."""


@dataclass(frozen=True, slots=True, eq=False)
class BoxLabels:
    """The annotated boxes of one image.

    Attributes:
        boxes: (I, 4) float32: x1, y1, x2, y2 in the image's pixels, the ends exclusive.
        classes: (I,) int64, positions in :attr:`DetectionImages.classes`.
        weights: (I,) float32, 0..1: how much a box counts; 1 for annotations by hand, the score of pseudo-labels.
        ignored: (I,) bool: regions in which detections count neither as right nor as wrong, such as crowds.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    weights: NDArray[np.float32]
    ignored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> BoxLabels:
        """The boxes of a mask or of positions."""
        return BoxLabels(self.boxes[rows], self.classes[rows], self.weights[rows], self.ignored[rows])

    @property
    def objects(self) -> int:
        """The number of boxes that are no ignored regions."""
        return int((~self.ignored).sum())

    def with_boxes(self, boxes: NDArray[np.float32]) -> BoxLabels:
        """The same labels at other places."""
        return BoxLabels(boxes, self.classes, self.weights, self.ignored)


def box_labels(
    boxes: ArrayLike, classes: ArrayLike, *, ignored: ArrayLike | None = None, weights: ArrayLike | None = None
) -> BoxLabels:
    """Labels from lists; without ``ignored`` none is, without ``weights`` all are 1."""
    table = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(table)
    return BoxLabels(
        table,
        np.asarray(classes, np.int64).reshape(-1),
        np.ones(count, np.float32) if weights is None else np.asarray(weights, np.float32).reshape(-1),
        np.zeros(count, np.bool_) if ignored is None else np.asarray(ignored, np.bool_).reshape(-1),
    )


def concatenated(parts: Sequence[BoxLabels]) -> BoxLabels:
    """All boxes of several labels in one."""
    if not parts:
        return box_labels([], [])
    return BoxLabels(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.ignored for part in parts]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class DetectionImages:
    """Paths of images and their boxes; an image is decoded when it is asked for. May serve as a PyTorch data set.

    Attributes:
        files: Where the images lie.
        names: N paths in it.
        labels: The boxes of each image, as annotated.
        classes: The names of the classes.
        roles: The split of each image; None where the data do not state one.
        rows: Further columns of each image, such as ``volume`` or ``commercial_ok``; empty where there are none.
        notes: What the report must say of the data, by name.
    """

    files: Files
    names: tuple[str, ...]
    labels: tuple[BoxLabels, ...]
    classes: tuple[str, ...]
    roles: tuple[Role, ...] | None = None
    rows: tuple[Mapping[str, str], ...] = ()
    notes: Mapping[str, object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, BoxLabels]:
        """One image, (H, W, 3) uint8 BGR, and its boxes clipped to it; empty ones are left out.

        Raises:
            SourceError: The image cannot be decoded, or a box leaves it by more than 2 % of its side.
        """
        image = self.files.image(self.names[index])
        return image, clipped_labels(self.labels[index], image, self.files.where(self.names[index]))


def clipped_labels(labels: BoxLabels, image: Image, where: str) -> BoxLabels:
    """The boxes clipped to an image; those that are empty then are left out.

    Raises:
        SourceError: A box leaves the image by more than 2 % of its side, as those of an image that was resized do.
    """
    height, width = image.shape[:2]
    size = np.array([width, height, width, height], np.float32)
    beyond = np.maximum(-labels.boxes, labels.boxes - size).max(initial=-np.inf, axis=0)
    if (beyond > np.maximum(_BEYOND * size, 2)).any():
        raise SourceError(
            f"{where} is {width}x{height}; a box reaches beyond it by {float(beyond.max()):g} pixels: the boxes are of "
            "another image, or of this one at another size"
        )
    boxes = np.clip(labels.boxes, 0, size)
    return labels.with_boxes(boxes)[np.all(boxes[:, 2:] > boxes[:, :2], axis=1)]


def chosen_classes(data: DetectionImages, wanted: str) -> DetectionImages:
    """The data with some of their classes only, in the order asked for; images without any of them stay.

    Args:
        data: The data.
        wanted: Names of classes separated by commas; empty for all. Where the data have one class without a name of
            its own (``object``), a single name names it.

    Raises:
        InputError: A class is not in the data, or asked for twice.
    """
    names = tuple(name.strip() for name in wanted.split(",")) if wanted.strip() else data.classes
    if len(set(names)) != len(names) or "" in names:
        raise InputError(f"recipe: classes is {wanted!r}; allowed: different names, separated by commas")
    if data.classes == (UNNAMED,) and len(names) == 1:
        return _with(data, data.labels, names)
    unknown = [name for name in names if name not in data.classes]
    if unknown:
        raise InputError(
            f"recipe: classes has {unknown[0]!r}, which is no class of {data.files.path}; "
            f"allowed: {', '.join(data.classes)}"
        )
    if names == data.classes:
        return data
    position = np.full(len(data.classes), -1, np.int64)
    for index, name in enumerate(names):
        position[data.classes.index(name)] = index

    def of_classes(labels: BoxLabels) -> BoxLabels:
        classes = position[labels.classes]
        kept = labels[classes >= 0]
        return BoxLabels(kept.boxes, classes[classes >= 0], kept.weights, kept.ignored)

    return _with(data, tuple(of_classes(labels) for labels in data.labels), names)


UNNAMED = "object"
"""The name of the only class of data that do not name it."""


def _with(data: DetectionImages, labels: tuple[BoxLabels, ...], classes: tuple[str, ...]) -> DetectionImages:
    return DetectionImages(data.files, data.names, labels, classes, data.roles, data.rows, data.notes)
