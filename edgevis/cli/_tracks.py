"""The tracks of a video, for `edgevis tracks` and for `edgevis enroll` of a video."""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from edgevis import Frame, InputError, Pipeline, Predictor, TrackedObject
from edgevis.cli._common import open_bundle
from runtime.common.addresses import without_password
from runtime.images.decode import Image
from runtime.pipeline import DETECTOR
from runtime.streams.sources import source_spec
from runtime.tracking.objects import UNKNOWN, crop_of, weights_in
from runtime.tracking.views import GOOD

_CROPS = 12
"""Crops that a label is enrolled with."""
_REPEATED = 0.95  # a view so much like one that is enrolled adds nothing

_CAMERA_S = 20.0
_SPAN_GAP_S = 2.0  # absence after which one that comes back has another span
_LISTED = 20


@dataclass(slots=True)
class VideoTrack:
    """What a video shows of one object.

    Attributes:
        number: The track's number.
        identity: The enrolled label, or a name such as ``unknown-7``.
        spans: When it is there, (first, last) seconds; one that was away has several.
        frames: Frames in which it was detected.
        views: Weights and crops of views, oldest first, each other one of a long track.
    """

    number: int
    identity: str = UNKNOWN
    spans: list[tuple[float, float]] = field(default_factory=list)
    frames: int = 0
    views: list[tuple[float, Image]] = field(default_factory=list)

    def add(self, time_s: float) -> None:
        """Note that it is there at ``time_s``, which follows the times before."""
        self.frames += 1
        first, last = self.spans[-1] if self.spans else (time_s, -math.inf)
        if time_s - last > _SPAN_GAP_S:
            self.spans.append((time_s, time_s))
        else:
            self.spans[-1] = (first, time_s)

    def add_view(self, weight: float, crop: Image) -> None:
        """Take one more view."""
        self.views.append((weight, crop))
        if len(self.views) > 8 * _CROPS:
            self.views = self.views[::2]

    def crops(self, predictor: Predictor) -> list[Image]:
        """Up to a dozen views that differ, whole ones where there are any, in the order of their time.

        First the view that is most like all others, then each time the one that is least like those that were chosen.
        """
        whole = [crop for weight, crop in self.views if weight >= GOOD] or [crop for _, crop in self.views]
        rows = predictor.embed(whole)
        cosines = rows @ rows.T
        chosen = [int(cosines.mean(axis=1).argmax())]
        while len(chosen) < _CROPS:
            nearest = cosines[chosen].max(axis=0)
            if nearest.min() >= _REPEATED:
                break
            chosen.append(int(nearest.argmin()))
        return [whole[place] for place in sorted(chosen)]

    @property
    def times(self) -> str:
        """Such as ``0.0-3.9 s, 12.4-15.0 s``."""
        return ", ".join(f"{first:.1f}-{last:.1f} s" for first, last in self.spans)

    def __str__(self) -> str:
        return f"track {self.number} ({self.identity}, {self.times})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        spans = [[round(value, 3) for value in span] for span in self.spans]
        return {"track": self.number, "identity": self.identity, "spans_s": spans, "frames": self.frames}


def add_seconds_argument(parser: argparse.ArgumentParser) -> None:
    """``--seconds``."""
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        help=f"watch a video or camera for so long (default: a video to its end, a camera for {_CAMERA_S:g} s)",
    )


def track_of(detector: str | None, predictor: Predictor, source: str, arguments: argparse.Namespace) -> VideoTrack:
    """The track that ``--from-track`` names, with its views; without it, that of the only object in the video.

    Args:
        detector: The detector's bundle; None for the one that comes along.
        predictor: The model that identifies, with what is enrolled, as `edgevis watch` would have it.
        source: The video, camera or address.
        arguments: With ``from_track``, ``seconds`` and the choice of an engine.

    Raises:
        InputError: No such track, or not exactly one: the message lists them.
        SourceError: There is no such source, or it cannot be read.
    """
    wanted = arguments.from_track
    if wanted is not None and not re.fullmatch(r"[0-9]+|[^\W\d].*", wanted):
        raise InputError(f"--from-track is {wanted!r}; allowed: the number of a track, or its name such as unknown-7")
    tracks: dict[int, VideoTrack] = {}
    with _tracked(detector, predictor, source, arguments) as frames:
        for frame, objects in frames:
            _note(tracks, frame, objects)
            for item, weight in zip(objects, weights_in(frame.image, objects), strict=True):
                if item.detected and weight > 0 and wanted in (None, str(item.track), item.identity):
                    tracks[item.track].add_view(weight, crop_of(frame.image, item))
            if wanted is None and len({track.identity for track in named(tracks.values())}) > 1:
                for track in tracks.values():
                    track.views.clear()  # it will be refused; long videos show many
    name, identified = without_password(source), named(tracks.values())
    if wanted is None and len({track.identity for track in identified}) > 1:
        raise InputError(f"{name} shows more than one: {_listed(identified)}; say which with --from-track NUMBER")
    chosen = [track for track in (identified if wanted is None else tracks.values()) if track.views]
    if not chosen:
        what = "nothing of which a view can be used" if wanted is None else f"no track {wanted}"
        raise InputError(f"{name} shows {what}; its tracks: {_listed([*tracks.values()])}")
    return joined(chosen)


def tracks_of(
    detector: str | None, predictor: Predictor, source: str, arguments: argparse.Namespace
) -> list[VideoTrack]:
    """The tracks of a video that got an identity, without their views; raises as :func:`track_of`."""
    tracks: dict[int, VideoTrack] = {}
    with _tracked(detector, predictor, source, arguments) as frames:
        for frame, objects in frames:
            _note(tracks, frame, objects)
    return named(tracks.values())


def named(tracks: Iterable[VideoTrack]) -> list[VideoTrack]:
    """Those that got an identity: others were there for less than a second, or are the beginning of such a one."""
    return [track for track in tracks if track.identity != UNKNOWN]


def joined(tracks: Sequence[VideoTrack]) -> VideoTrack:
    """One track of several of the same identity; the first one's number stands for all."""
    spans = sorted(span for track in tracks for span in track.spans)
    views = [view for track in tracks for view in track.views]
    return VideoTrack(tracks[0].number, tracks[0].identity, spans, sum(track.frames for track in tracks), views)


@contextmanager
def _tracked(
    detector: str | None, predictor: Predictor, source: str, arguments: argparse.Namespace
) -> Iterator[Iterator[tuple[Frame, tuple[TrackedObject, ...]]]]:
    """The frames with their objects, until the end or ``--seconds``."""
    seconds = arguments.seconds
    if seconds is not None and not 0 < seconds < math.inf:
        raise InputError(f"--seconds is {seconds:g}; allowed: a number > 0")
    endless = source_spec(source).kind in ("camera", "address")
    limit = seconds if seconds is not None else _CAMERA_S if endless else math.inf
    with (
        open_bundle(DETECTOR if detector is None else detector, arguments) as opened,
        Pipeline(opened, predictor) as pipeline,
    ):
        stream = pipeline.stream(source)
        yield itertools.takewhile(lambda pair: pair[0].time_s <= limit, stream)


def _note(tracks: dict[int, VideoTrack], frame: Frame, objects: Sequence[TrackedObject]) -> None:
    for item in objects:
        track = tracks.setdefault(item.track, VideoTrack(item.track))
        track.identity = item.identity
        if item.detected:
            track.add(frame.time_s)


def _listed(tracks: Sequence[VideoTrack]) -> str:
    more = f" and {len(tracks) - _LISTED} more" if len(tracks) > _LISTED else ""
    return (", ".join(map(str, tracks[:_LISTED])) or "none") + more
