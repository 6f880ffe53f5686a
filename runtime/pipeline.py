"""The pipeline: detection, tracking and identification composed over the frames of one or several cameras."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count, takewhile
from typing import Literal, TypeAlias, cast

import numpy as np

from runtime import tasks
from runtime.common.closing import Closing
from runtime.common.forking import holds_up_forks
from runtime.errors import EdgevisError, InputError
from runtime.images.decode import Image, as_image
from runtime.open_set.decision import OpenSetInfo
from runtime.open_set.strangers import LIVE_S
from runtime.predictor import Predictor
from runtime.results import Detections
from runtime.streams.ahead import AheadReader
from runtime.streams.feed import Drop
from runtime.streams.frame import Frame
from runtime.streams.reader import StreamReader
from runtime.streams.sources import Source
from runtime.tasks.detect import DetectionTask
from runtime.tracking import trackers
from runtime.tracking.identifier import EmbeddingModel, Identifier
from runtime.tracking.identities import Unknowns, is_unknown_name
from runtime.tracking.objects import UNKNOWN, TrackedObject, draw_objects
from runtime.tracking.records import SeenTrack, SourceTracks, TrackRecord
from runtime.tracking.settings import PipelineSettings
from runtime.tracking.stats import PipelineCounters, PipelineStats
from runtime.tracking.strangers import stranger_rows

DETECTOR, IDENTIFIER = "person-detector", "osnet-in-x0-5"
"""The bundles that come with edgevis."""

_Detected: TypeAlias = tuple[list[Detections | None], float]
_PERSON = "person"
_EXPIRE_EVERY = 256  # frames between two looks for unknowns that are to be forgotten


class Pipeline(Closing):
    """Detects, tracks and identifies objects on streams.

    One thread streams; others may read :attr:`stats` and :attr:`unknowns`, and rename, merge and forget meanwhile.

    Args:
        detect: The bundle of a detector, or of a model that segments instances, or a predictor with one, which is then
            the caller's to close; None for the person detector that comes with edgevis.
        identify: The bundle of a model with embeddings – person Re-ID, or few-shot classification of what is detected –
            or a predictor with one; None for the Re-ID model that comes with edgevis; False tracks without identities.
        enrolment: A file that ``Predictor.save`` or ``edgevis enroll`` wrote; :meth:`rename` adds to it.
        false_accept_rate: As for :class:`edgevis.Predictor`.
        classes: The classes to track; None for ``person`` where persons are identified, otherwise all.
        detect_every: Objects are detected in each such frame of a source; between them their boxes are predicted.
        identify_every: Frames after which a track's view is embedded again, besides when its size or shape changes.
        settings: What most programs leave as it is, see :class:`edgevis.PipelineSettings`.

    Raises:
        InputError: An argument is not allowed, or a bundle's task is another one.
        BundleError, BackendError: A bundle cannot be opened.
        EnrolmentError: The enrolment cannot be read.
    """

    def __init__(
        self,
        detect: str | os.PathLike[str] | Predictor | None = None,
        identify: str | os.PathLike[str] | Predictor | Literal[False] | None = None,
        *,
        enrolment: str | os.PathLike[str] | None = None,
        false_accept_rate: float | None = None,
        classes: Sequence[str] | None = None,
        detect_every: int = 1,
        identify_every: int = 15,
        settings: PipelineSettings | None = None,
    ) -> None:
        for name, value in (("detect_every", detect_every), ("identify_every", identify_every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}; allowed: a whole number of frames >= 1")
        if identify is False and (enrolment is not None or false_accept_rate is not None):
            raise InputError("identify=False tracks without identities; it takes no enrolment and no false_accept_rate")
        if not isinstance(settings, PipelineSettings | None):
            raise InputError(f"settings is a {type(settings).__name__}; allowed: a PipelineSettings, or None")
        self._settings = settings or PipelineSettings()
        self._open_tracker()  # what is wrong with its settings is known now, not at the first frame
        self._detect_every, self._identify_every = detect_every, identify_every
        self._enrolment = enrolment
        self._changing = threading.RLock()
        self._owned: list[Predictor] = []
        self._closed = False
        self._numbers = count(1)
        self._sources: dict[int, SourceTracks] = {}
        self._cameras: dict[str, int] = {}
        self._reader: StreamReader | None = None
        self._ahead: AheadReader[_Detected] | None = None
        self._counters = PipelineCounters()
        self._since_expiry = 0
        self._identify: Predictor | None = None
        self._identifier: Identifier | None = None
        try:
            self._detector = self._opened(detect, DETECTOR)
            if not isinstance(self._detector.task, DetectionTask):
                raise InputError(
                    f"detect: the task {self._detector.info.task!r} makes no boxes; allowed: detect, instance_segment"
                )
            if identify is not False:
                self._identify = self._opened(identify, IDENTIFIER, false_accept_rate)
                self._identifier = self._identifier_of(self._identify)
                if enrolment is not None:
                    self._identify.load(enrolment)
                if false_accept_rate is not None and self._identify is identify:
                    self._identify.false_accept_rate = false_accept_rate
            self._classes = self._classes_of(classes)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the stream, close the predictors that the pipeline opened, and forget the unknowns.

        Closing twice does no harm.
        """
        self._closed = True
        if self._ahead is not None:
            self._ahead.close()
        with self._changing:  # not in the middle of a frame
            self._sources = {}
            if self._identifier is not None:
                self._identifier.clear()
            for predictor in self._owned:
                predictor.close()

    def stream(
        self,
        source: Source | Sequence[Source],
        *,
        drop: Drop = "auto",
        reconnect: bool = True,
        timeout_s: float = 10.0,
        batch: int = 1,
        on_error: Callable[[EdgevisError], object] | None = None,
    ) -> Generator[tuple[Frame, tuple[TrackedObject, ...]], None, None]:
        """Each frame of a source, or of several, with the objects that are tracked in it.

        A thread detects objects in the next frames while these are tracked, identified and used.

        Tracks begin anew with each call, which ends an earlier stream; enrolled labels and unknowns stay. With several
        sources ``frame.source`` is the position of the frame's own, and an unknown keeps its name from one source to
        another. ``close()`` of what is returned ends it early, as the end of the program's loop does.

        Args:
            source: As for :meth:`edgevis.Predictor.stream`, or a list of sources.
            drop, reconnect, timeout_s, on_error: See :class:`runtime.streams.reader.StreamReader`.
            batch: The most frames that go through the detector at once.

        Raises:
            InputError: An argument is not allowed.
            SourceError: There is no such source; while iterating, it cannot be opened or read.
        """
        self._check_open()
        reader = StreamReader(
            source, drop=drop, reconnect=reconnect, timeout_s=timeout_s, batch=batch, on_error=on_error
        )
        if self._ahead is not None:
            self._ahead.close()
        ahead = AheadReader(reader, self._begin)
        self._reader, self._ahead, self._sources = reader, ahead, {}
        return self._followed(ahead)

    def _followed(
        self, ahead: AheadReader[_Detected]
    ) -> Generator[tuple[Frame, tuple[TrackedObject, ...]], None, None]:
        with ahead:
            try:
                for frames, detected in ahead:
                    yield from zip(frames, self._follow(frames, *detected), strict=True)
            except EdgevisError:
                if not self._closed:  # by another thread: the stream ends
                    raise
            if self._ahead is ahead:
                self._sources = {}

    def process(self, frames: Sequence[Frame]) -> list[tuple[TrackedObject, ...]]:
        """The tracked objects of each frame, for programs that read frames themselves.

        Args:
            frames: The next frames, of any sources; one call of the detector and one of the embedding model serve all.

        Raises:
            InputError: One of them is no :class:`edgevis.Frame`, or its image is none, see :meth:`Predictor.predict`.
        """
        frames = [_checked(frame) for frame in frames]
        with self._changing:
            self._check_open()
            return self._follow(frames, *self._begin(frames)()) if frames else []

    def _begin(self, frames: Sequence[Frame]) -> Callable[[], _Detected]:
        """Note which of the next frames are looked at; returns the work of finding the objects in them."""
        with self._changing:
            for frame in frames:
                if frame.source not in self._sources:
                    self._sources[frame.source] = self._source_tracks(frame.source)
            due = [self._sources[frame.source].due(frame) for frame in frames]
        return lambda: self._detect(frames, due)

    def _detect(self, frames: Sequence[Frame], due: Sequence[bool]) -> _Detected:
        """The detections of each frame, in one batch, None for a frame that is not looked at; and the milliseconds."""
        images = [frame.image for frame, looked in zip(frames, due, strict=True) if looked]
        self._check_open()
        started = time.perf_counter()
        detections = iter(self._detected(images) if images else [])
        return [next(detections) if looked else None for looked in due], 1e3 * (time.perf_counter() - started)

    @holds_up_forks
    def _detected(self, images: Sequence[Image]) -> list[Detections]:
        return cast(DetectionTask, self._detector.task).detect(images, score=self._settings.detection_score)

    def _follow(
        self, frames: Sequence[Frame], detections: Sequence[Detections | None], detect_ms: float
    ) -> list[tuple[TrackedObject, ...]]:
        """The tracked objects of frames in which objects were detected, in ``detect_ms``."""
        with self._changing:
            self._check_open()
            started = time.perf_counter()
            seen = [self._track(frame, objects) for frame, objects in zip(frames, detections, strict=True)]
            requests = [
                request
                for frame, tracks in zip(frames, seen, strict=True)
                for request in self._sources[frame.source].requests(frame, tracks)
            ]
            tracked = time.perf_counter()
            if self._identifier is not None:
                now = max(frame.captured for frame in frames)
                for record in self._identifier.identify(requests, self._present(), now=now):
                    self._sources[record.source].take_number_back(record)
                self._expire(len(frames), now)
            results = [tuple(track.result() for track in tracks) for tracks in seen]
            identified = time.perf_counter()
        track_ms, identify_ms = 1e3 * (tracked - started), 1e3 * (identified - tracked)
        self._counters.add(results, {"detect": detect_ms, "track": track_ms, "identify": identify_ms})
        return results

    @staticmethod
    def plot(image: Image, objects: Sequence[TrackedObject]) -> Image:
        """A copy of (H, W, 3) uint8 BGR ``image`` with the box, the identity and the score of each object."""
        return draw_objects(image, objects)

    @property
    def stats(self) -> PipelineStats:
        """Counts and times since the pipeline was opened; of its sources, those of the last stream."""
        identifier = self._identifier
        with self._changing:
            return self._counters.stats(
                () if self._reader is None else self._reader.stats,
                unknowns=len(self.unknowns),
                embedded=0 if identifier is None else identifier.embedded,
                drift=None if identifier is None else identifier.drift.state(),
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The enrolled labels."""
        return () if self._identify is None else self._identify.labels

    @property
    def unknowns(self) -> tuple[str, ...]:
        """The names of the unknowns that are remembered, in the order in which they came."""
        return () if self._identifier is None else tuple(self._identifier.unknowns)

    def calibrate(self, source: Source, *, seconds: float | None = None, without: Collection[int] = ()) -> OpenSetInfo:
        """Measure the open-set threshold on the persons, or objects, that a source shows; none of them is enrolled.

        As :meth:`edgevis.Predictor.calibrate`, by views of tracks in every fifth frame; of one with whole views, by
        those. The source is streamed as by :meth:`stream`.

        Args:
            source: A minute of the camera's own video, a camera, an address, or whatever else :meth:`stream` takes.
            seconds: Watch it for so long; None for a video to its end, a live source for a minute.
            without: Numbers of tracks that are enrolled, and so no strangers.

        Returns:
            The operating point, as the predictor's ``info.open_set``.

        Raises:
            InputError: Fewer than 20 views, no such track, or an argument is not allowed.
            SourceError: The source cannot be read; the calibration is as before.
        """
        _, predictor = self._identified()
        if seconds is not None and not 0 < seconds < math.inf:
            raise InputError(f"seconds is {seconds:g}; allowed: a number > 0")

        def wanted(shown: tuple[Frame, tuple[TrackedObject, ...]]) -> bool:
            live = self._reader is not None and self._reader.live  # of an address known once it is open
            return shown[0].time_s <= (seconds or (LIVE_S if live else math.inf))

        with closing(self.stream(source)) as stream:
            rows = stranger_rows(takewhile(wanted, stream), predictor.task.scored_rows, without=without)
        return predictor.calibrate_rows(rows)

    def rename(self, unknown: str, label: str) -> None:
        """Enrol an unknown under a label, by the embeddings that are kept of it; tracks of it get the label.

        Args:
            unknown: Such as ``unknown-7``.
            label: A new label, or one that is enrolled.

        Raises:
            UnknownLabelError: There is no such unknown.
            InputError: The label is not allowed, or one that unknowns have, or no view of the unknown could be used
                yet.
            EnrolmentError: The pipeline's enrolment file cannot be written; in memory the label is enrolled.
        """
        identifier, predictor = self._identified()
        if label == UNKNOWN or is_unknown_name(label):
            raise InputError(
                f"label {label!r} is a name of unknowns; give another one, or make two unknowns one: merge()"
            )
        with self._changing:
            rows = identifier.unknowns.rows(unknown)
            if not len(rows):
                raise InputError(f"no view of {unknown} could be used yet, so there is nothing to enrol; wait for one")
            predictor.enroll_rows(label, rows)
            identifier.unknowns.forget(unknown)
            self._decide_again({unknown: None})
        if self._enrolment is not None:
            predictor.update(self._enrolment)

    def merge(self, kept: str, other: str) -> None:
        """Make two unknowns one; tracks of ``other`` get the name ``kept``. UnknownLabelError when one is not known."""
        identifier, _ = self._identified()
        with self._changing:
            identifier.unknowns.merge(kept, other)
            self._decide_again({other: kept})

    def forget(self, unknown: str) -> None:
        """Forget an unknown and its embeddings; UnknownLabelError when there is none. A track of it begins anew."""
        identifier, _ = self._identified()
        with self._changing:
            identifier.unknowns.forget(unknown)
            self._decide_again({unknown: None})

    def _track(self, frame: Frame, detections: Detections | None) -> list[SeenTrack]:
        source = self._sources[frame.source]
        if detections is None:
            return source.predict(frame)
        if self._classes is not None:
            detections = detections[np.array([label in self._classes for label in detections.labels], bool)]
        return source.update(frame, detections)

    def _source_tracks(self, source: int) -> SourceTracks:
        known = () if self._reader is None else self._reader.stats
        name = known[source].source if source < len(known) else str(source)
        camera = self._cameras.setdefault(name, len(self._cameras))
        return SourceTracks(
            self._open_tracker(),
            self._settings,
            self._numbers,
            camera=camera,
            detect_every=self._detect_every,
            identify_every=self._identify_every,
        )

    def _open_tracker(self) -> trackers.Tracker:
        return trackers.load(self._settings.tracker).open_tracker(self._settings.tracker_settings)

    def _present(self) -> list[TrackRecord]:
        """The tracks that are in a frame now."""
        return [record for source in self._sources.values() for record in source.records if record.present]

    def _expire(self, frames: int, now: float) -> None:
        """Forget now and then who was not seen for long."""
        self._since_expiry += frames
        if self._identifier is not None and self._since_expiry >= _EXPIRE_EVERY:
            self._since_expiry = 0
            kept = {record.unknown for source in self._sources.values() for record in source.records if record.unknown}
            self._identifier.expire(now, present=kept)

    def _decide_again(self, names: Mapping[str, str | None]) -> None:
        """Give the tracks of these unknowns their new names, or decide for them again."""
        records = [record for source in self._sources.values() for record in source.records]
        changed = [record for record in records if record.unknown in names]
        for record in changed:
            record.unknown = names[cast(str, record.unknown)]
        if self._identifier is not None:
            self._identifier.decide(changed, self._present(), {}, now=time.monotonic())

    def _identified(self) -> tuple[Identifier, Predictor]:
        if self._identifier is None or self._identify is None:
            raise InputError("this pipeline was opened with identify=False: it has no identities")
        return self._identifier, self._identify

    def _opened(
        self, given: str | os.PathLike[str] | Predictor | None, default: str, false_accept_rate: float | None = None
    ) -> Predictor:
        if isinstance(given, Predictor):
            return given
        # For this run only: set afterwards, the rate would be written to the enrolment with what is renamed.
        predictor = Predictor(default if given is None else given, false_accept_rate=false_accept_rate)
        self._owned.append(predictor)
        return predictor

    def _identifier_of(self, predictor: Predictor) -> Identifier:
        name = predictor.info.task
        if tasks.load(name).TRAITS.embedding is None:
            raise InputError(f"identify: the task {name!r} has no embeddings; allowed: a bundle of reid or classify")
        model = cast(EmbeddingModel, predictor.task)
        unknowns = Unknowns(
            model.with_nothing_enrolled(),
            limit=self._settings.max_unknowns,
            forget_after_s=self._settings.forget_unknown_after_s,
        )
        return Identifier(model, unknowns, self._settings, unique=name == "reid")

    def _classes_of(self, classes: Sequence[str] | None) -> frozenset[str] | None:
        """The classes to track; None for all."""
        known = self._detector.labels
        if classes is None:
            persons = self._identify is not None and self._identify.info.task == "reid" and _PERSON in known
            return frozenset((_PERSON,)) if persons else None
        unknown = [name for name in classes if name not in known]
        if isinstance(classes, str) or not classes or unknown:
            raise InputError(f"classes is {classes!r}; allowed: some of {', '.join(known)}, in a list")
        return frozenset(classes)

    def _check_open(self) -> None:
        if self._closed:
            raise EdgevisError("this pipeline has been closed; open another one")


def _checked(frame: Frame) -> Frame:
    """A frame that a program made."""
    if not isinstance(frame, Frame):
        raise InputError(
            f"one of the frames is a {type(frame).__name__}; allowed: edgevis.Frame(image, source, index, time_s, "
            "captured)"
        )
    image = as_image(frame.image, f"the image of frame {frame.index}")
    return frame if image is frame.image else replace(frame, image=image)
