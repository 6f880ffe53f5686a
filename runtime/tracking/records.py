"""The tracks of one source as the pipeline knows them: numbers, views and identities beside the tracker's boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.results import Detections, Match
from runtime.streams.frame import Frame
from runtime.tracking.clock import FrameClock
from runtime.tracking.evidence import Evidence
from runtime.tracking.objects import UNKNOWN, TrackedObject
from runtime.tracking.settings import PipelineSettings
from runtime.tracking.trackers import TrackedBox, Tracker
from runtime.tracking.views import GOOD, ViewSize, view_weights

_SHOWN = 5
"""Matches that a result has."""


@dataclass(eq=False, slots=True)
class TrackRecord:
    """What is known of one track.

    Attributes:
        number: The track's number, which is shown.
        source: The position of its source.
        camera: The number of its source's camera, which the pipeline keeps from one stream to the next.
        detection_label: The class of its first detection.
        first_s, seen_s: When it was detected first and last, in seconds of its source.
        evidence: Its views.
        label, matches: By the evidence.
        unknown: The unknown identity; None for a label, and before it is decided.
        present: Whether it was detected when one last looked.
        last_view: The index of the frame of the last view that was asked for; None before the first.
        view_size, view_weight: The size of that view, and its weight by where its box lay.
        unlike_holder: Whether another object has had its label before this camera, see :mod:`runtime.tracking.holders`.
        contradicted: How many views in a row speak against its unknown identity.
    """

    number: int
    source: int
    camera: int
    detection_label: str
    first_s: float
    seen_s: float
    evidence: Evidence = field(default_factory=Evidence)
    label: str | None = None
    matches: tuple[Match, ...] = ()
    unknown: str | None = None
    present: bool = True
    last_view: int | None = None
    view_size: ViewSize | None = None
    view_weight: float = GOOD
    unlike_holder: bool = False
    contradicted: int = 0

    @property
    def identity(self) -> str:
        """The label, the unknown identity, or ``unknown``."""
        return self.label or self.unknown or UNKNOWN

    @property
    def shares_label(self) -> bool:
        """Whether it has a label that belongs to another object as well."""
        return self.label is not None and self.unlike_holder


@dataclass(frozen=True, slots=True, eq=False)
class ViewRequest:
    """A crop of a track that should be embedded.

    Attributes:
        record: The track.
        box: x0, y0, x1, y1, whole pixels of the frame.
        weight: See :mod:`runtime.tracking.views`.
        frame: The frame.
    """

    record: TrackRecord
    box: tuple[int, int, int, int]
    weight: float
    frame: Frame


@dataclass(frozen=True, slots=True, eq=False)
class SeenTrack:
    """A track in one frame: its record and its box."""

    record: TrackRecord
    box: TrackedBox
    size: tuple[int, int]

    def result(self) -> TrackedObject:
        """The present state of the track at this frame's box."""
        record, (height, width) = self.record, self.size
        limits = np.array([width, height, width, height])
        return TrackedObject(
            record.number,
            np.asarray(np.clip(self.box.box_xyxy, 0, limits), np.float32),
            record.matches[0].score if record.matches else 0.0,
            record.label,
            record.identity,
            record.matches[:_SHOWN],
            record.detection_label,
            self.box.score,
            self.box.detection is not None,
        )


class SourceTracks:
    """The tracks of one source.

    Args:
        tracker: Links its detections.
        settings: The pipeline's.
        numbers: Gives the numbers of new tracks.
        camera: The number of the source's camera.
        detect_every, identify_every: See :class:`runtime.pipeline.Pipeline`.
    """

    def __init__(
        self,
        tracker: Tracker,
        settings: PipelineSettings,
        numbers: Iterator[int],
        *,
        camera: int,
        detect_every: int,
        identify_every: int,
    ) -> None:
        self._tracker, self._settings, self._numbers, self._camera = tracker, settings, numbers, camera
        self._detect_every, self._identify_every = detect_every, identify_every
        self._records: dict[int, TrackRecord] = {}
        self._ended: list[TrackRecord] = []
        self._clock = FrameClock()
        self._looked: int | None = None

    @property
    def records(self) -> tuple[TrackRecord, ...]:
        """The tracks that have not ended."""
        return tuple(self._records.values())

    def due(self, frame: Frame) -> bool:
        """Whether objects should be detected in this frame."""
        due = self._looked is None or frame.index - self._looked >= self._detect_every
        if due:
            self._looked = frame.index
        return due

    def update(self, frame: Frame, detections: Detections) -> list[SeenTrack]:
        """The tracks that are in a frame, which follows the last one, by what was detected in it."""
        time_s = self._clock.advance(frame)
        tracked = self._tracker.update(
            detections.boxes_xyxy, detections.scores, detections.class_ids, index=frame.index, time_s=time_s
        )
        self._end_others({item.key for item in tracked}, time_s)
        seen = []
        for item in tracked:
            record = self._records.get(item.key)
            if item.detection is None:
                if record is not None:
                    record.present = False
                continue
            if not item.confirmed:
                continue
            if record is None:
                label = detections.labels[item.detection]
                record = TrackRecord(next(self._numbers), frame.source, self._camera, label, time_s, time_s)
                self._records[item.key] = record
            record.present, record.seen_s = True, time_s
            seen.append(self._seen(frame, record, item))
        return seen

    def predict(self, frame: Frame) -> list[SeenTrack]:
        """The tracks that are in a frame in which one did not look."""
        time_s = self._clock.advance(frame)
        tracked = self._tracker.predict(index=frame.index, time_s=time_s)
        self._end_others({item.key for item in tracked}, time_s)
        known = [(self._records.get(item.key), item) for item in tracked]
        return [self._seen(frame, record, item) for record, item in known if record is not None and record.present]

    def requests(self, frame: Frame, seen: Sequence[SeenTrack]) -> list[ViewRequest]:
        """The crops of a frame that should be embedded: of new tracks, of changed ones, and of each now and then."""
        detected = [item for item in seen if item.box.detection is not None]
        if not detected:
            return []
        boxes = np.stack([item.box.box_xyxy for item in detected])
        height, width = frame.image.shape[:2]
        found = []
        for item, weight in zip(detected, view_weights(boxes, (height, width)).tolist(), strict=True):
            x0, y0, x1, y1 = item.box.box_xyxy.tolist()
            size = ViewSize(max(x1 - x0, 1.0), max(y1 - y0, 1.0))
            if weight == 0.0 or not self._needs_view(item.record, frame.index, size, weight):
                continue
            box = (max(round(x0), 0), max(round(y0), 0), min(round(x1), width), min(round(y1), height))
            if box[0] < box[2] and box[1] < box[3]:
                item.record.last_view, item.record.view_size, item.record.view_weight = frame.index, size, weight
                found.append(ViewRequest(item.record, box, weight, frame))
        return found

    def take_number_back(self, record: TrackRecord) -> None:
        """Give a track the number of an earlier one of the same identity that was lost a short time ago.

        A label that two objects have, which do not look alike, is no identity: one of them is a stranger.
        """
        if record.shares_label:
            return
        earlier = [
            other
            for other in (*self._ended, *self._records.values())
            if other is not record
            and not other.present
            and other.identity == record.identity
            and not other.shares_label
            and record.first_s >= other.seen_s
            and record.seen_s - other.seen_s <= self._settings.reassociate_s
        ]
        if not earlier:
            return
        latest = max(earlier, key=lambda other: other.seen_s)
        record.number, record.first_s = latest.number, latest.first_s
        record.evidence.take_over(latest.evidence)
        self._ended = [other for other in self._ended if other is not latest]
        self._records = {key: other for key, other in self._records.items() if other is not latest}

    @staticmethod
    def _seen(frame: Frame, record: TrackRecord, item: TrackedBox) -> SeenTrack:
        return SeenTrack(record, item, (frame.image.shape[0], frame.image.shape[1]))

    def _needs_view(self, record: TrackRecord, index: int, size: ViewSize, weight: float) -> bool:
        settings = self._settings
        if weight < GOOD:  # only for want of a good one
            if record.evidence.has_good_view or record.seen_s - record.first_s < settings.patience_s:
                return False
        elif record.view_weight < GOOD:
            return True
        if record.last_view is None or record.view_size is None:
            return True
        passed = index - record.last_view
        if len(record.evidence) < settings.first_views:
            return passed >= settings.first_views_every
        changed = size.differs(record.view_size) and passed >= settings.first_views_every
        return changed or passed >= self._identify_every

    def _end_others(self, keys: set[int], time_s: float) -> None:
        for key in [key for key in self._records if key not in keys]:
            record = self._records.pop(key)
            record.present = False
            self._ended.append(record)
        self._ended = [other for other in self._ended if time_s - other.seen_s <= self._settings.reassociate_s]
