"""What a pipeline says of one object in one frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from runtime.common.json_data import to_json
from runtime.images.decode import Image
from runtime.images.draw import color_of, draw_tag, drawable, tag_scale
from runtime.results import Match
from runtime.tracking.views import view_weights

UNKNOWN = "unknown"
"""The identity of an object of which no view could be used yet."""


@dataclass(frozen=True, slots=True, eq=False)
class TrackedObject:
    """One tracked object in one frame.

    Attributes:
        track: The number of the track, from 1; of one pipeline, no two tracks share one.
        box_xyxy: (4,) float32 x0, y0, x1, y1 in pixels of the frame, within it.
        score: The score of the best match, -1..1, the mean over the track's views; 0.0 where there is none.
        label: The enrolled label by the evidence of all views; None below the open-set threshold.
        identity: The label, or a name that stays such as ``unknown-7``; ``unknown`` until a view could be used.
        matches: The enrolled labels that fit best with their mean scores, best first.
        detection_label: The class that the detector gave, such as ``person``.
        detection_score: The detector's last score, 0..1.
        detected: Whether the detector found it in this frame; otherwise the box is predicted.
    """

    track: int
    box_xyxy: npt.NDArray[np.float32]
    score: float
    label: str | None
    identity: str
    matches: tuple[Match, ...]
    detection_label: str
    detection_score: float
    detected: bool

    @property
    def box(self) -> npt.NDArray[np.float32]:
        """:attr:`box_xyxy`."""
        return self.box_xyxy

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {name: to_json(getattr(self, name)) for name in self.__slots__ if name not in ("box_xyxy", "matches")}
        box = [round(float(value), 2) for value in self.box_xyxy]
        return {**data, "box_xyxy": box, "matches": [match._asdict() for match in self.matches]}


def draw_objects(image: Image, objects: Iterable[TrackedObject]) -> Image:
    """A copy of (H, W, 3) uint8 BGR ``image`` with the box, the identity and the score of each object."""
    picture = drawable(image)
    scale = 0.6 * tag_scale(picture)
    thickness = max(1, min(picture.shape[:2]) // 200)
    for item in objects:
        color = color_of(None if item.identity == UNKNOWN else item.identity)
        left, top, right, bottom = (round(float(value)) for value in item.box_xyxy)
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), color, thickness)
        score = f" {item.score:.2f}" if item.label is not None else ""
        draw_tag(picture, f"{item.identity}{score}", (left, top), color, scale)
    return picture


def weights_in(image: Image, objects: Sequence[TrackedObject]) -> npt.NDArray[np.float64]:
    """(N,) what each object's view in (H, W, 3) ``image`` is worth, see :func:`runtime.tracking.views.view_weights`."""
    boxes = np.stack([item.box_xyxy for item in objects]) if objects else np.empty((0, 4), np.float32)
    return view_weights(boxes, (image.shape[0], image.shape[1]))


def crop_of(image: Image, item: TrackedObject) -> Image:
    """A copy of what (H, W, 3) uint8 BGR ``image`` shows of an object, as it is embedded."""
    x0, y0, x1, y1 = (round(float(value)) for value in item.box_xyxy)
    return np.asarray(image[y0:y1, x0:x1].copy())
