"""Drift: whether the objects that cameras show now still look like those that were enrolled.

The centre of the newest embeddings is compared with the centre of the enrolment's own, each object counted once, in the
few directions in which views of one object differ most from camera to camera: light and viewpoint show there, persons
hardly. Two centres also differ by chance, because they are of other objects: with variance V between objects, n
enrolled labels and m tracks, their squared distance is V (1/n + 1/m) on the average where nothing has drifted.
``shift`` is the squared distance over that, a two-sample statistic of 1 on the average; above :data:`ALARM` it raises
the alarm.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.gallery.embedded import EmbeddedGallery
from runtime.open_set.decision import OpenSet

ALARM = 1.6
"""With the Re-ID weights that ship and two or three persons enrolled from one of two videos, the shift of the others,
and of later views of the same, was at most 1.53; with 15 % of the light at least 1.68 and 4.7 in the median, with 25 %
1.7 in the median."""
_MIN_LABELS = 2
_MIN_TRACKS = 2
_MIN_VIEWS = 10
_TRACKS = 64  # the newest, whose views are remembered
_VIEWS = 16  # of each
_LABELS = 1024  # that an enrolment is represented by


class DriftModel(Protocol):
    """A task with embeddings and what is enrolled in it."""

    @property
    def gallery(self) -> EmbeddedGallery: ...

    @property
    def open_set(self) -> OpenSet: ...


@dataclass(frozen=True, slots=True)
class DriftState:
    """How far the newest embeddings are from the enrolment's.

    Attributes:
        shift: The squared distance of the centres over its expectation without drift; None where there are too few: at
            least 2 labels, 2 tracks and 10 views are needed.
        alarm: Whether the shift is above :data:`ALARM`.
        views: The number of embeddings that it was measured on.
        tracks: The number of tracks that they are of.
    """

    shift: float | None
    alarm: bool
    views: int
    tracks: int


class DriftMonitor:
    """Remembers the newest embeddings of a pipeline's tracks.

    Args:
        model: The task whose embeddings are followed.
    """

    def __init__(self, model: DriftModel) -> None:
        self._gallery, self._open_set = model.gallery, model.open_set
        self._tracks: OrderedDict[int, list[npt.NDArray[np.float32]]] = OrderedDict()
        self._known: tuple[int, Array] | None = None  # the gallery's version, and its labels' centres

    def add(self, track: int, row: Array) -> None:
        """Take the (D,) row of one view of a track."""
        rows = self._tracks.pop(track, [])
        self._tracks[track] = [*rows[1 - _VIEWS :], np.asarray(row, np.float32)]
        if len(self._tracks) > _TRACKS:
            self._tracks.popitem(last=False)

    def clear(self) -> None:
        """Forget all embeddings."""
        self._tracks.clear()
        self._known = None

    def state(self) -> DriftState:
        """The present drift."""
        tracks = list(self._tracks.values())
        views = sum(map(len, tracks))
        labels = self._labels()
        if len(labels) < _MIN_LABELS or len(tracks) < _MIN_TRACKS or views < _MIN_VIEWS:
            return DriftState(None, False, views, len(tracks))
        newest = self._open_set.camera_coordinates(_means(tracks))
        distance = float(np.square(newest.mean(axis=0) - labels.mean(axis=0)).sum())
        spread = sum(float(np.square(rows - rows.mean(axis=0)).sum()) for rows in (newest, labels))
        variance = spread / (len(newest) + len(labels) - 2)
        shift = distance / max(variance * (1 / len(labels) + 1 / len(newest)), 1e-12)
        return DriftState(shift, shift > ALARM, views, len(tracks))

    def _labels(self) -> Array:
        """(L, K) float64: each label's mean row, in the coordinates that are compared."""
        version = self._gallery.version
        if self._known is None or self._known[0] != version:
            rows = [rows for _, rows in islice(self._gallery.items(), _LABELS)]
            centres = self._open_set.camera_coordinates(_means(rows)) if rows else np.empty((0, 1))
            self._known = version, centres
        return self._known[1]


def _means(parts: list[Array] | list[list[npt.NDArray[np.float32]]]) -> npt.NDArray[np.float64]:
    """(P, D): the mean row of each part."""
    return np.stack([np.mean(rows, axis=0, dtype=np.float64) for rows in parts])
