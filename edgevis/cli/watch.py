"""Detect, track and identify on cameras, addresses or videos, and tell who appears, is identified and leaves."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

import cv2

from edgevis import EdgevisError, Frame, InputError, Pipeline, Predictor, TrackedObject
from edgevis.cli._common import (
    add_engine_options,
    add_output_arguments,
    add_rate_argument,
    json_text,
    open_bundle,
    shown,
)
from edgevis.cli._streams import add_stream_arguments, frame_rate_of
from runtime.common.command import Terminated
from runtime.common.console import report
from runtime.events.detector import EventDetector, TrackEvent
from runtime.events.sinks import EventSink, open_sink
from runtime.images.decode import Image
from runtime.monitoring.prometheus import LOCALHOST, MetricsServer
from runtime.pipeline import DETECTOR, IDENTIFIER
from runtime.streams.video_output import VideoOutput

NONE = "none"
_STANDARD_OUTPUT = ("jsonl", "-")
_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
_CLOSE_S = 5.0
_INTERRUPTED_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", metavar="SOURCE", nargs="+", help="a camera's index, an address such as rtsp://…, a video, a folder"
    )
    parser.add_argument("--detect", metavar="BUNDLE", help=f"the detector (default: {DETECTOR}, which comes along)")
    parser.add_argument(
        "--identify",
        metavar="BUNDLE",
        help=f"the model that identifies (default: {IDENTIFIER}, which comes along); {NONE} only tracks",
    )
    parser.add_argument("--enrolment", metavar="FILE", help="what `edgevis enroll` wrote")
    add_engine_options(parser)
    add_rate_argument(parser)
    parser.add_argument("--classes", metavar="NAME", nargs="+", help="what to track (default: persons, or everything)")
    parser.add_argument("--detect-every", metavar="N", type=int, default=1, help="detect every N frames (default: 1)")
    parser.add_argument(
        "--identify-every", metavar="N", type=int, default=15, help="look again at a track after N frames (default: 15)"
    )
    parser.add_argument("--show", action="store_true", help="show the annotated frames in a window; q ends")
    parser.add_argument(
        "--save", metavar="FILE", help="write the annotated frames as .mp4, .avi or .mkv; of several sources FILE-0, …"
    )
    parser.add_argument(
        "--events",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="send events to: jsonl (standard output), a file, mqtt://HOST[:PORT]/TOPIC, or an http(s):// webhook; may "
        "be given several times",
    )
    parser.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        type=_endpoint,
        help="serve Prometheus metrics; for this machine alone unless HOST is named, such as 0.0.0.0 in a container",
    )
    parser.add_argument("--frames", metavar="N", type=int, help="stop after so many frames")
    add_stream_arguments(parser)
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.frames is not None and arguments.frames < 1:
        raise InputError(f"--frames is {arguments.frames}; allowed: a whole number >= 1")
    to_output = [address for address in arguments.events if address in _STANDARD_OUTPUT]
    if arguments.json and to_output:
        raise InputError("--json prints the objects of each frame, --events jsonl the events; give one of them")
    with ExitStack() as stack:
        show = stack.enter_context(_window()) if arguments.show else None
        outputs = [stack.enter_context(video) for video in _videos(arguments)]
        sinks = [stack.enter_context(_closing(open_sink(address))) for address in arguments.events]
        pipeline = _pipeline(arguments, stack)
        if arguments.metrics is not None:
            host, port = arguments.metrics
            stack.enter_context(MetricsServer(lambda: pipeline.stats, port, host=host))
        teller = _Teller(arguments, sinks, quiet=bool(to_output))
        try:
            errors = _watch(arguments, pipeline, teller, outputs, show)
        finally:  # also after Ctrl-C
            teller.close()
            _summarise(pipeline)
    return 1 if errors else 0


def _watch(
    arguments: argparse.Namespace,
    pipeline: Pipeline,
    teller: _Teller,
    outputs: Sequence[VideoOutput],
    show: Callable[[int, Image], bool] | None,
) -> int:
    """Watch until the sources end; returns how many of them, and of the images in folders, could not be read."""
    errors: list[EdgevisError] = []

    def on_error(error: EdgevisError) -> None:
        errors.append(error)
        report(error)

    several = len(arguments.sources) > 1
    stream = pipeline.stream(
        arguments.sources if several else arguments.sources[0],
        drop=arguments.drop,
        timeout_s=arguments.timeout,
        reconnect=not arguments.no_reconnect,
        batch=len(arguments.sources),
        on_error=on_error,
    )
    for frame, objects in islice(stream, arguments.frames):
        teller.tell(frame, objects)
        if outputs or show is not None:
            picture = pipeline.plot(frame.image, objects)
            if outputs:
                outputs[frame.source].write(picture, time_s=frame.time_s)
            if show is not None and not show(frame.source, picture):
                break
    return len(errors)


class _Teller:
    """Prints frames or events, and sends events on."""

    def __init__(self, arguments: argparse.Namespace, sinks: Sequence[EventSink], *, quiet: bool) -> None:
        self._json, self._sinks, self._text = arguments.json, sinks, not (arguments.json or quiet)
        self._several = len(arguments.sources) > 1
        self._events = EventDetector()

    def tell(self, frame: Frame, objects: Sequence[TrackedObject]) -> None:
        if self._json:
            entry = {"source": frame.source, "frame": frame.index, "time_s": round(frame.time_s, 3)}
            print(json_text({**entry, "objects": [item.to_dict() for item in objects]}), flush=True)
        self._send(self._events.update(frame, objects))

    def close(self) -> None:
        self._send(self._events.close())

    def _send(self, events: Sequence[TrackEvent]) -> None:
        for event in events:
            if self._text:
                print(self._line(event), flush=True)
            for sink in self._sinks:
                sink.send(event.to_dict())

    def _line(self, event: TrackEvent) -> str:
        where = f"source {event.source}  " if self._several else ""
        what = {"appeared": "appeared", "identified": "identified", "left": f"left after {event.seconds:.1f} s"}
        before = f", was {shown(event.previous)}" if event.previous else ""
        score = f" ({event.score:.2f})" if event.label is not None else ""
        who = f"{shown(event.identity)}{score}"
        return f"{event.time_s:9.2f} s  {where}track {event.track:<4}  {who} {what[event.type]}{before}"


def _pipeline(arguments: argparse.Namespace, stack: ExitStack) -> Pipeline:
    """The pipeline with its predictors; ``stack`` closes all of them."""
    identifies = arguments.identify != NONE
    rate = arguments.false_accept_rate
    if not identifies and (arguments.enrolment is not None or rate is not None):
        raise InputError(f"--identify {NONE} only tracks; it takes no --enrolment and no --false-accept-rate")
    detector = stack.enter_context(open_bundle(DETECTOR if arguments.detect is None else arguments.detect, arguments))
    identifier: Predictor | Literal[False] = False
    if identifies:
        name = IDENTIFIER if arguments.identify is None else arguments.identify
        identifier = stack.enter_context(open_bundle(name, arguments, false_accept_rate=rate))
    pipeline = Pipeline(
        detector,
        identifier,
        enrolment=arguments.enrolment,
        classes=arguments.classes,
        detect_every=arguments.detect_every,
        identify_every=arguments.identify_every,
    )
    return stack.enter_context(pipeline)


def _videos(arguments: argparse.Namespace) -> list[VideoOutput]:
    if arguments.save is None:
        return []
    path, count = Path(arguments.save), len(arguments.sources)
    paths = [path] if count == 1 else [path.with_name(f"{path.stem}-{place}{path.suffix}") for place in range(count)]
    rates = [frame_rate_of(Path(name) if Path(name).is_file() else name) for name in arguments.sources]
    return [VideoOutput(*item) for item in zip(paths, rates, strict=True)]


def _endpoint(text: str) -> tuple[str, int]:
    """The host and the port to serve metrics at."""
    host, _, port = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; allowed: 0 to 65535, as in 9100 or 0.0.0.0:9100")
    return host or LOCALHOST, int(port)


@contextmanager
def _closing(sink: EventSink) -> Iterator[EventSink]:
    """Close a receiver at the end; after Ctrl-C at once, after SIGTERM once it has taken what waits."""
    wait_s = _CLOSE_S
    try:
        yield sink
    except KeyboardInterrupt as error:
        wait_s = _CLOSE_S if isinstance(error, Terminated) else _INTERRUPTED_S
        raise
    finally:
        sink.close(timeout_s=wait_s)


@contextmanager
def _window() -> Iterator[Callable[[int, Image], bool]]:
    """A function that shows a source's frame and returns whether to go on.

    Raises:
        InputError: This OpenCV has no windows, or there is no screen.
    """
    title = "edgevis watch"
    refusal = InputError("--show needs an OpenCV with windows, and a screen; --save FILE.mp4 needs neither")
    if sys.platform == "linux" and not any(map(os.environ.get, _SCREENS)):  # Qt would end the process
        raise refusal
    try:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL)
    except cv2.error as error:
        raise refusal from error

    def show(source: int, picture: Image) -> bool:
        cv2.imshow(title if source == 0 else f"{title} {source}", picture)
        return cv2.waitKey(1) & 0xFF not in (ord("q"), 27)

    try:
        yield show
    finally:
        cv2.destroyAllWindows()


def _summarise(pipeline: Pipeline) -> None:
    stats = pipeline.stats
    for source in stats.sources:
        report(
            f"{shown(source.source)}: {source.frames} frames, {source.dropped} dropped, {source.corrupt} corrupt, "
            f"{source.reconnects} reconnects, {source.fps:.1f} a second",
            kind="watched",
        )
    if stats.drift is not None and stats.drift.alarm:
        report(
            f"what the cameras show has drifted from what is enrolled (shift {stats.drift.shift:.1f}): check light, "
            "lens and angle, or enrol again",
            kind="warning",
        )
