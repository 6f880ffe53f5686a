"""The result of instance segmentation: boxes and outlines, from which masks are filled when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, overload

import cv2
import numpy as np
import numpy.typing as npt

from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.images.draw import color_of, drawable, tint
from runtime.images.polygons import polygon_mask, polygon_patch
from runtime.interop.supervision import supervision_detections
from runtime.results import Detections

MAX_MASK_BYTES = 1 << 30
"""The largest size of all masks of a result together; a pixel of a mask is a byte."""

_SUBPIXEL_BITS = 4


class Instance(NamedTuple):
    """One object of an image with its outline: a :class:`runtime.results.Detection` and its polygon.

    Attributes:
        box_xyxy: x0, y0, x1, y1 in the image's pixels.
        score: The model's score, 0..1.
        label: The class's name.
        class_id: The class's place among the model's labels.
        polygon: x, y of each vertex in the image's pixels, in order around the outline.
    """

    box_xyxy: tuple[float, float, float, float]
    score: float
    label: str
    class_id: int
    polygon: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, eq=False)
class InstanceSegmentation(Detections):
    """The objects in an image with their outlines, the best score first; there may be none.

    It is used as :class:`Detections` are: ``len`` is the number of objects, N; an int index gives an
    :class:`Instance`, a slice, an array of indices or a mask (N,) bool gives the objects that it chooses.

    Attributes:
        polygons: (N, V, 2) float32: x, y of each vertex in the image's own pixels, inside the image, in order around
            the outline.
        size: The image's (H, W).
    """

    polygons: npt.NDArray[np.float32] = field(kw_only=True)
    size: tuple[int, int] = field(kw_only=True)

    def __iter__(self) -> Iterator[Instance]:  # type: ignore[override]  # an Instance has a Detection's members
        outlines = (tuple((x, y) for x, y in outline) for outline in self.polygons.tolist())
        return (Instance(*item, outline) for item, outline in zip(Detections.__iter__(self), outlines, strict=True))

    @overload  # type: ignore[override]  # an Instance has a Detection's members
    def __getitem__(self, index: int) -> Instance: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | Sequence[bool] | npt.NDArray[Any]) -> InstanceSegmentation: ...

    def __getitem__(
        self, index: int | slice | Sequence[int] | Sequence[bool] | npt.NDArray[Any]
    ) -> Instance | InstanceSegmentation:
        return Detections.__getitem__(self, index)  # type: ignore[return-value]  # which iterates as above

    def _chosen(self, places: npt.NDArray[np.int64]) -> InstanceSegmentation:
        return replace(Detections._chosen(self, places), polygons=self.polygons[places])

    def mask(self, index: int) -> npt.NDArray[np.bool_]:
        """(H, W) bool: the pixels of one object, those whose centre its outline holds; IndexError if there is none."""
        return polygon_mask(self.polygons[index], self.size)

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(N, H, W) bool: the pixels of each object, filled anew at each call and not kept.

        They take N * H * W bytes: 100 objects of 1920 x 1080 pixels are 207 MB.

        Raises:
            InputError: They would take more than 1 GiB; :meth:`mask` gives one at a time.
        """
        needed = len(self) * self.size[0] * self.size[1]
        if needed > MAX_MASK_BYTES:
            raise InputError(
                f"{len(self)} masks of {self.size[0]} x {self.size[1]} pixels take {needed} bytes; allowed: "
                f"{MAX_MASK_BYTES}; take one at a time, mask(i), or the masks of some, [:10].masks"
            )
        masks = np.zeros((len(self), *self.size), np.bool_)
        for mask, polygon in zip(masks, self.polygons, strict=True):
            rows, columns, inside = polygon_patch(polygon, self.size)
            mask[rows, columns] = inside
        return masks

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: a list of the objects, each with label, class, score, box and polygon; no pixels."""
        height, width = self.size
        return {"height": height, "width": width, **Detections.to_dict(self)}

    def to_supervision(self) -> Any:
        """``supervision.Detections`` with the same boxes, and with masks; the labels are its ``data["class_name"]``.

        Raises:
            MissingDependencyError: supervision is not installed.
            InputError: The masks would take more than 1 GiB.
        """
        return supervision_detections(self.boxes_xyxy, self.scores, self.labels, self.class_ids, self.masks)

    def plot(self, image: Image) -> Image:
        """A copy of ``image`` with each object tinted and outlined in its label's colour, and its box and label.

        Raises:
            InputError: The image is not of the size that was predicted on.
        """
        if image.shape[:2] != self.size:
            raise InputError(f"the image is {image.shape[:2]}, the result's {self.size}; give the image predicted on")
        picture = drawable(image)
        thickness = max(1, min(self.size) // 200)
        for label, polygon in reversed(list(zip(self.labels, self.polygons, strict=True))):
            rows, columns, inside = polygon_patch(polygon, self.size)
            tint(picture[rows, columns], inside, color_of(label))
            # OpenCV counts from the centre of the first pixel.
            points = np.round((polygon - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
            cv2.polylines(picture, [points], True, color_of(label), thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
        self._draw_boxes(picture)
        return picture
