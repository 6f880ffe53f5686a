"""From the tracked objects of consecutive frames to events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from runtime.common.json_data import to_json
from runtime.streams.frame import Frame
from runtime.tracking.clock import FrameClock
from runtime.tracking.objects import UNKNOWN, TrackedObject

EventType = Literal["appeared", "identified", "left"]


@dataclass(frozen=True, slots=True)
class TrackEvent:
    """One event of one track.

    Attributes:
        type: ``appeared``: a track has an identity for the first time; ``identified``: it has a label, or another
            identity than before; ``left``: it was not seen for a while, or the stream has ended.
        time: The time of day, UTC, ISO 8601.
        source: The position of the source.
        frame, time_s: The index of the frame and its time in seconds of the source; of ``left``, when it was seen last.
        track: The track's number.
        identity: The label, or a name such as ``unknown-7``.
        previous: The identity before, of ``identified``; None where there was none.
        label, score: See :class:`runtime.tracking.objects.TrackedObject`.
        detection_label: The class of the object.
        box_xyxy: The last box, in pixels of the frame.
        seconds: Seconds since the track appeared.
    """

    type: EventType
    time: str
    source: int
    frame: int
    time_s: float
    track: int
    identity: str
    previous: str | None
    label: str | None
    score: float
    detection_label: str
    box_xyxy: tuple[float, float, float, float]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(to_json(self))


@dataclass(slots=True)
class _Presence:
    item: TrackedObject
    frame: Frame
    first_s: float
    seen_s: float
    reported: str | None = None  # the identity of the last event


class EventDetector:
    """Makes events of what a pipeline yields. A track that ends without an identity makes none.

    Args:
        left_after_s: Seconds of its source for which a track may be absent before it has left.
    """

    def __init__(self, *, left_after_s: float = 2.0) -> None:
        self._left_after_s = left_after_s
        self._clocks: dict[int, FrameClock] = {}
        self._present: dict[int, _Presence] = {}

    def update(self, frame: Frame, objects: Iterable[TrackedObject]) -> list[TrackEvent]:
        """The events of one frame."""
        now = self._clocks.setdefault(frame.source, FrameClock()).advance(frame)
        events = []
        for item in objects:
            presence = self._present.get(item.track)
            if presence is None:
                presence = self._present[item.track] = _Presence(item, frame, now, now)
            presence.item, presence.frame, presence.seen_s = item, frame, now
            if item.identity not in (UNKNOWN, presence.reported):
                events += self._news(presence)
        gone = [
            track
            for track, presence in self._present.items()
            if presence.frame.source == frame.source and now - presence.seen_s > self._left_after_s
        ]
        return events + self._left(gone)

    def close(self) -> list[TrackEvent]:
        """The events of the end of the stream: all have left."""
        return self._left(list(self._present))

    def _news(self, presence: _Presence) -> list[TrackEvent]:
        previous, presence.reported = presence.reported, presence.item.identity
        if previous is not None:
            return [_event("identified", presence, previous)]
        appeared = _event("appeared", presence, None)
        return [appeared] if presence.item.label is None else [appeared, _event("identified", presence, None)]

    def _left(self, tracks: Sequence[int]) -> list[TrackEvent]:
        ended = [self._present.pop(track) for track in tracks]
        return [_event("left", presence, None) for presence in ended if presence.reported is not None]


def _event(kind: EventType, presence: _Presence, previous: str | None) -> TrackEvent:
    item, frame = presence.item, presence.frame
    x0, y0, x1, y1 = (round(float(value), 1) for value in item.box_xyxy)
    return TrackEvent(
        kind,
        datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        frame.source,
        frame.index,
        round(presence.seen_s, 3),
        item.track,
        item.identity,
        previous,
        item.label,
        round(item.score, 4),
        item.detection_label,
        (x0, y0, x1, y1),
        round(presence.seen_s - presence.first_s, 3),
    )
