"""The pixels of COCO's annotations: polygons, and run lengths as numbers or as compressed text.

Format: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; cocodataset.org, "Data format". Run lengths
go down the columns and begin with what is not the object; compressed, five bits a character, each number from the
third on as the difference to the one before the last.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevis.data.detection_coco import is_coordinate, read_json
from edgevis.data.files import Files
from runtime.errors import SourceError
from runtime.images.polygons import polygon_patch

MAX_VERTICES = 20_000
"""The largest number of vertices of an annotation."""

_MAX_RUNS = 10_000_000
_FIRST, _LAST, _BITS = 48, 111, 5


@dataclass(frozen=True, slots=True, eq=False)
class RunLengths:
    """Run lengths of an image of (height, width), as stated: numbers, or compressed text."""

    height: int
    width: int
    counts: Sequence[int] | str

    def mask(self, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
        """(H, W) bool; SourceError if they are of another size, or do not fill it."""
        counts = decompressed(self.counts, where) if isinstance(self.counts, str) else self.counts
        if (self.height, self.width) != size or sum(counts) != size[0] * size[1]:
            raise SourceError(
                f"{where} is {size[1]}x{size[0]}; its run lengths are of {self.width}x{self.height} and have "
                f"{sum(counts)} pixels"
            )
        values = np.arange(len(counts)) % 2 == 1
        return np.repeat(values, counts).reshape(size[::-1]).T


Polygons = tuple[NDArray[np.float32], ...]
"""(V, 2) float32 x, y each; pixel i covers i to i + 1."""

Shape = Polygons | RunLengths


@dataclass(frozen=True, slots=True, eq=False)
class CocoShapes:
    """The shapes of an image's annotations, in their order; an empty tuple of polygons is none."""

    shapes: tuple[Shape, ...]

    def drawn(self, size: tuple[int, int], where: str) -> NDArray[np.uint16]:
        """(H, W) uint16: the annotation, counted from 1, that has each pixel; the smallest of several, 0 of none.

        Args:
            size: The image's (H, W).
            where: For messages.

        Raises:
            SourceError: Run lengths are of another size.
        """
        ids, area_of = np.zeros(size, np.uint16), np.full(size, np.prod(size) + 1)
        for number, shape in enumerate(self.shapes, start=1):
            mask = _mask(shape, size, where)
            area = int(mask.sum())
            mask &= area <= area_of
            ids[mask], area_of[mask] = number, area
        return ids


def read_shapes(files: Files, annotations: Sequence[str]) -> list[CocoShapes]:
    """The shapes of the images that :func:`edgevis.data.detection_coco.read_coco` has read, in the same order.

    Args:
        files: Annotations and images.
        annotations: The annotation files, which have been found to be in COCO's format.

    Raises:
        SourceError: A segmentation is not in COCO's format, or no annotation has one.
    """
    shapes: list[CocoShapes] = []
    for annotation in annotations:
        data, where = read_json(files, annotation), files.where(annotation)
        rows: dict[int, list[Shape]] = {item["id"]: [] for item in data["images"]}
        for item in data["annotations"]:
            shape = parse_shape(item.get("segmentation"), f"{where}: image {item['image_id']}")
            rows[item["image_id"]].append(shape)
        for item in data["images"]:
            shapes.append(CocoShapes(tuple(rows[item["id"]])))
    if not any(shape for image in shapes for shape in image.shapes):
        raise without_masks(files)
    return shapes


def without_masks(files: Files) -> SourceError:
    """The error of data whose objects have no pixels."""
    return SourceError(
        f"{files.path} has boxes, but no masks; allowed: instances/STEM.png beside images/, or the segmentation of "
        "COCO's annotations"
    )


def parse_shape(value: object, where: str) -> Shape:
    """The shape of a ``segmentation``; of None, and of an empty list, no polygons.

    Raises:
        SourceError: It is neither polygons nor run lengths, or too large.
    """
    if value is None:
        return ()
    if isinstance(value, dict):
        return _run_lengths(value, where)
    if not isinstance(value, list) or sum(len(part) for part in value if isinstance(part, list)) > 2 * MAX_VERTICES:
        raise SourceError(f"{where} has a segmentation that is neither polygons, of {MAX_VERTICES} vertices, nor a run")
    polygons = []
    for part in value:
        if not (isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 and all(map(is_coordinate, part))):
            raise SourceError(f"{where} has a polygon that is not [x, y, …] with three or more finite vertices")
        polygons.append(np.array(part, np.float32).reshape(-1, 2))
    return tuple(polygons)


def decompressed(text: str, where: str) -> list[int]:
    """The run lengths of COCO's compressed text; SourceError if it is none."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - _FIRST
        if not 0 <= code <= _LAST - _FIRST or shift > 6 * _BITS:
            raise SourceError(f"{where} has run lengths that are not COCO's compressed text")
        value |= (code & 0x1F) << shift
        shift += _BITS
        if not code & 0x20:
            value -= (1 << shift) if code & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift or any(count < 0 for count in counts):
        raise SourceError(f"{where} has run lengths that are not COCO's compressed text")
    return counts


def _run_lengths(value: dict[str, object], where: str) -> RunLengths:
    size, counts = value.get("size"), value.get("counts")
    if (
        isinstance(size, list)
        and len(size) == 2
        and _whole(size, below=1 << 16)
        and isinstance(counts, (list, str))
        and len(counts) <= _MAX_RUNS
        and (isinstance(counts, str) or _whole(counts, below=1 << 32))
    ):
        return RunLengths(size[0], size[1], counts)
    raise SourceError(f"{where} has run lengths that are not {{size: [height, width], counts: numbers or text}}")


def _whole(values: list[object], *, below: int) -> bool:
    return all(type(value) is int and 0 <= value < below for value in values)  # type(): True is an int, too


def _mask(shape: Shape, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    if isinstance(shape, RunLengths):
        return shape.mask(size, where)
    mask = np.zeros(size, np.bool_)
    for polygon in shape:
        rows, columns, inside = polygon_patch(polygon, size)
        mask[rows, columns] |= inside
    return mask
