"""ByteTrack: detections of high score are linked first, then those of low score to what is left of the tracks.

Source: Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV 2022, algorithm 1,
with the costs and bounds of its published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from runtime.common.arrays import Array
from runtime.detection.boxes import pairwise_iou
from runtime.errors import InputError
from runtime.tracking.assignment import assign
from runtime.tracking.kalman import BoxFilter
from runtime.tracking.trackers import TrackedBox


@dataclass(frozen=True, slots=True)
class ByteTrackSettings:
    """The settings of :class:`ByteTrack`.

    Attributes:
        high_score: Detections of this score, 0..1, are linked first.
        low_score: Those below it are left out.
        new_score: The least score of a detection that begins a track.
        min_iou: The least overlap, times the score, of a first link.
        min_low_iou: The least overlap of a link with a detection of low score.
        min_new_iou: The least overlap, times the score, of a link with a track that is not confirmed yet.
        confirm_hits: Detections in consecutive frames before a track is confirmed; in a source's first frame one does.
        lost_s: Seconds for which a track without detections is kept.
    """

    high_score: float = 0.5
    low_score: float = 0.1
    new_score: float = 0.5
    min_iou: float = 0.2
    min_low_iou: float = 0.5
    min_new_iou: float = 0.3
    confirm_hits: int = 2
    lost_s: float = 2.0


def open_tracker(settings: Mapping[str, Any]) -> ByteTrack:
    """A tracker; InputError for a setting that is not one of :class:`ByteTrackSettings`, or not a number."""
    known = {field.name: field.type for field in fields(ByteTrackSettings)}
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"the tracker 'bytetrack' has no setting {name!r}; allowed: {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e6:
            raise InputError(f"the tracker's {name} is {value!r}; allowed: a number >= 0")
    return ByteTrack(ByteTrackSettings(**settings))


class ByteTrack:
    """Tracks boxes by their motion. It uses no appearance: that is the pipeline's part.

    Velocities are per frame, so dropped frames are predicted over.
    """

    def __init__(self, settings: ByteTrackSettings | None = None) -> None:
        self._settings = settings or ByteTrackSettings()
        self._filter = BoxFilter()
        # One entry for each track of the filter, in its order.
        self._keys = np.empty(0, np.int64)
        self._scores = np.empty(0)
        self._classes = np.empty(0, np.int64)
        self._hits = np.empty(0, np.int64)
        self._confirmed = np.empty(0, bool)
        self._missed = np.empty(0, bool)  # without a detection when one was last looked for
        self._seen_s = np.empty(0)
        self._next = 0
        self._index: int | None = None

    def update(
        self, boxes: Array, scores: Array, class_ids: Array, *, index: int, time_s: float
    ) -> Sequence[TrackedBox]:
        settings = self._settings
        first = self._index is None
        self._advance(index)
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        scores, class_ids = np.asarray(scores, np.float64), np.asarray(class_ids, np.int64)
        high = np.flatnonzero(scores >= settings.high_score)
        low = np.flatnonzero((scores >= settings.low_score) & (scores < settings.high_score))
        linked = np.full(len(self._keys), -1, np.int64)
        tracks = np.flatnonzero(self._confirmed)
        similar = self._similarities(tracks, boxes[high], class_ids[high]) * scores[high]
        tracks, high = self._link(linked, tracks, high, similar, settings.min_iou)
        # A lost track is not found again by a detection of low score.
        present = tracks[~self._missed[tracks]]
        similar = self._similarities(present, boxes[low], class_ids[low])
        self._link(linked, present, low, similar, settings.min_low_iou)
        tentative = np.flatnonzero(~self._confirmed)
        similar = self._similarities(tentative, boxes[high], class_ids[high]) * scores[high]
        _, high = self._link(linked, tentative, high, similar, settings.min_new_iou)
        self._correct(linked, boxes, scores, time_s)
        fresh = high[scores[high] >= settings.new_score]
        self._begin(boxes[fresh], scores[fresh], class_ids[fresh], time_s, confirmed=first)
        linked = np.concatenate([linked, fresh])
        kept = np.flatnonzero(
            (linked >= 0) | (self._confirmed & (time_s - self._seen_s <= settings.lost_s))  # tentative ones end at once
        )
        self._keep(kept)
        return self._tracked(linked[kept], boxes)

    def predict(self, *, index: int, time_s: float) -> Sequence[TrackedBox]:
        self._advance(index)
        self._keep(np.flatnonzero(time_s - self._seen_s <= self._settings.lost_s))
        return self._tracked(np.full(len(self._keys), -1, np.int64), np.empty((0, 4)))

    def _advance(self, index: int) -> None:
        frames = 1 if self._index is None else max(index - self._index, 1)
        self._index = index
        self._filter.stop_resizing(np.flatnonzero(self._missed))
        self._filter.predict(frames)

    def _similarities(self, tracks: Array, boxes: Array, class_ids: Array) -> Array:
        """(T, N) overlaps of tracks and boxes, 0 for those of two classes."""
        overlaps = pairwise_iou(self._filter.boxes[tracks], boxes)
        overlaps[self._classes[tracks][:, None] != class_ids[None]] = 0.0
        return overlaps

    def _link(
        self, linked: Array, tracks: Array, detections: Array, similar: Array, least: float
    ) -> tuple[Array, Array]:
        """Write the links into ``linked``; returns the tracks and detections that are left."""
        pairs = assign(1.0 - similar, 1.0 - least)
        if not pairs:
            return tracks, detections
        rows, columns = np.array(pairs).T
        linked[tracks[rows]] = detections[columns]
        return np.delete(tracks, rows), np.delete(detections, columns)

    def _correct(self, linked: Array, boxes: Array, scores: Array, time_s: float) -> None:
        found = np.flatnonzero(linked >= 0)
        self._filter.correct(found, boxes[linked[found]])
        self._scores[found] = scores[linked[found]]
        self._seen_s[found] = time_s
        self._hits[found] += 1
        self._confirmed |= self._hits >= self._settings.confirm_hits
        self._missed = linked < 0

    def _begin(self, boxes: Array, scores: Array, class_ids: Array, time_s: float, *, confirmed: bool) -> None:
        count = len(boxes)
        self._filter.add(boxes)
        self._keys = np.concatenate([self._keys, np.arange(self._next, self._next + count)])
        self._next += count
        self._scores = np.concatenate([self._scores, scores])
        self._classes = np.concatenate([self._classes, class_ids])
        self._hits = np.concatenate([self._hits, np.ones(count, np.int64)])
        believed = confirmed or self._settings.confirm_hits <= 1
        self._confirmed = np.concatenate([self._confirmed, np.full(count, believed)])
        self._missed = np.concatenate([self._missed, np.zeros(count, bool)])
        self._seen_s = np.concatenate([self._seen_s, np.full(count, time_s)])

    def _keep(self, tracks: Array) -> None:
        self._filter.keep(tracks)
        for name in ("_keys", "_scores", "_classes", "_hits", "_confirmed", "_missed", "_seen_s"):
            setattr(self, name, getattr(self, name)[tracks])

    def _tracked(self, linked: Array, boxes: Array) -> list[TrackedBox]:
        # Where there is a detection its box is better than the filtered one, which lags behind who walks fast.
        places = self._filter.boxes
        places[linked >= 0] = boxes[linked[linked >= 0]]
        return [
            TrackedBox(int(key), box, float(score), int(class_id), int(at) if at >= 0 else None, bool(confirmed))
            for key, box, score, class_id, at, confirmed in zip(
                self._keys, places, self._scores, self._classes, linked, self._confirmed, strict=True
            )
        ]
