"""Trackers: each file here links the detections of consecutive frames to tracks, behind one small protocol.

The file's name is the tracker's name. Such a module offers ``open_tracker(settings)``. A package outside edgevis adds
a tracker as an entry point of the group ``edgevis.trackers``, named as the tracker, that points to such a module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.common.discovery import known_names, load_from
from runtime.errors import InputError

GROUP = "edgevis.trackers"
"""The entry points of trackers from other packages."""


@dataclass(frozen=True, slots=True, eq=False)
class TrackedBox:
    """The state of one track in one frame.

    Attributes:
        key: The track's number in its tracker; it is never given to another track.
        box_xyxy: (4,) float64 in pixels of the image: its detection's, or predicted where there is none.
        score: The score of its last detection, 0..1.
        class_id: The class of its detections.
        detection: The index of its detection in this frame; None where there is none.
        confirmed: Whether it has been detected often enough to be believed.
    """

    key: int
    box_xyxy: npt.NDArray[np.float64]
    score: float
    class_id: int
    detection: int | None
    confirmed: bool


class Tracker(Protocol):
    """The tracks of one source."""

    def update(
        self, boxes: Array, scores: Array, class_ids: Array, *, index: int, time_s: float
    ) -> Sequence[TrackedBox]:
        """Link the detections of one frame.

        Args:
            boxes: (N, 4) float32 xyxy in pixels.
            scores: (N,) float32, 0..1; low ones should be given, too.
            class_ids: (N,) int64; only detections of one class make a track.
            index: The frame's index in its source; those between two calls were dropped.
            time_s: The frame's time in seconds.

        Returns:
            All tracks, also those without a detection in this frame; a track that is not among them has ended.
        """
        ...

    def predict(self, *, index: int, time_s: float) -> Sequence[TrackedBox]:
        """The tracks in a frame in which nothing was detected because nobody looked."""
        ...


class TrackerModule(Protocol):
    """The members of a module in this package."""

    def open_tracker(self, settings: Mapping[str, Any]) -> Tracker:
        """A tracker for one source; InputError for a setting that it does not have."""
        ...


def names() -> tuple[str, ...]:
    """The names of all trackers."""
    return known_names(__name__, GROUP)


def load(name: str) -> TrackerModule:
    """The tracker module of a name; InputError lists the known ones."""
    return cast(TrackerModule, load_from(__name__, name, what="tracker", error=InputError, group=GROUP))
