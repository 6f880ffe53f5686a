"""Speed of a stream beside its steps done one after another: ``python -m benchmarks.overlap``.

``Predictor.stream`` preprocesses the next frames, and ``Pipeline.stream`` detects objects in them, while the present
ones are used. Each is timed in turn with the same steps by one thread – read, predict, or read, process – over the
first frames of a video; a row has the median of the rounds' ratios. Decoding has a thread of its own in both forms.

The second table is of a camera of 30 frames a second on loopback whose frames are dropped, before work that the thread
does and a use of the results by the program that take fixed times: frames per second, and the age of a frame when its
result is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from benchmarks.stream_servers import CameraServer
from edgevis import EdgevisError, Frame, Pipeline, Predictor
from runtime.common.text import markdown_table, text_table
from runtime.streams.ahead import AheadReader
from runtime.streams.reader import StreamReader

LIVE_HEADERS = ("work ms", "use ms", "form", "fps", "age p50 ms", "age p99 ms")
LIVE = ((100, 20), (60, 60), (20, 100))
"""Milliseconds of work and of use."""

HEADERS = ("what", "one after another", "stream", "ratio", "least", "most")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Frames per second in both forms by round.

    Attributes:
        what: The verb and its model.
        steps, stream: One figure for each round.
    """

    what: str
    steps: tuple[float, ...]
    stream: tuple[float, ...]

    def cells(self) -> tuple[str, ...]:
        """A table's row: medians, and the ratio of the forms with the least and the most of all rounds."""
        ratios = np.array(self.stream) / np.array(self.steps)
        middle = (float(np.median(self.steps)), float(np.median(self.stream)))
        return (
            self.what,
            *(f"{value:.1f}" for value in middle),
            *(f"{value:.2f}" for value in (np.median(ratios), ratios.min(), ratios.max())),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overlap", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--detect", required=True, help="a detector's bundle")
    parser.add_argument("--identify", required=True, help="a Re-ID bundle")
    parser.add_argument("--video", required=True, help="a video")
    parser.add_argument("--threads", type=int, help="CPU threads for each engine (default: the backend's choice)")
    parser.add_argument("--frames", type=int, default=400, help="of the video (default: 400)")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each form, in turn (default: 5)")
    arguments = parser.parse_args(argv)
    try:
        with (
            Predictor(arguments.detect, threads=arguments.threads) as detector,
            Predictor(arguments.identify, threads=arguments.threads) as reid,
        ):
            rows = [row.cells() for row in measure(detector, reid, arguments.video, arguments.frames, arguments.rounds)]
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text_table(HEADERS, rows))
    print(f"\nFrames per second, medians of {arguments.rounds} rounds\n\n{markdown_table(HEADERS, rows)}\n")
    live = live_camera(seconds=4.0 * arguments.rounds)
    print(f"{text_table(LIVE_HEADERS, live)}\n\n{markdown_table(LIVE_HEADERS, live)}")
    return 0


def live_camera(*, seconds: float) -> list[tuple[str, ...]]:
    """The rows of the second table, each of so many seconds in all."""
    rows: list[tuple[str, ...]] = []
    with CameraServer() as camera:
        for work_ms, use_ms in LIVE:
            ages: dict[str, list[float]] = {"one after another": [], "stream": []}
            for form in ("one after another", "stream") * 2:
                ages[form] += _ages(camera.address("fps=30"), form == "stream", work_ms, use_ms, seconds / 2)
            for form, seen in ages.items():
                p50, p99 = np.percentile(np.array(seen) * 1e3, (50, 99))
                rate = len(seen) / seconds
                rows.append((str(work_ms), str(use_ms), form, f"{rate:.1f}", f"{p50:.0f}", f"{p99:.0f}"))
    return rows


def _ages(address: str, ahead: bool, work_ms: int, use_ms: int, seconds: float) -> list[float]:
    """The ages of the frames of a stream, in seconds, when their results are there."""

    def work() -> None:
        time.sleep(work_ms / 1e3)

    def steps(reader: StreamReader) -> Iterator[list[Frame]]:
        for frames in reader:
            work()
            yield frames

    ages: list[float] = []
    reader = StreamReader(address, drop="oldest")
    with AheadReader(reader, lambda _: work) as stream:
        lists = (frames for frames, _ in stream) if ahead else steps(reader)
        started = None
        for (frame,) in lists:
            now = time.monotonic()
            started = now if started is None else started
            if now - started > seconds:
                break
            ages.append(now - frame.captured)
            time.sleep(use_ms / 1e3)
    return ages


def measure(detector: Predictor, reid: Predictor, video: str, frames: int, rounds: int) -> list[Overlap]:
    """Both forms of each verb on the first frames of a video."""
    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "Predictor, detection": _predictor(detector, video, frames),
        "Predictor, Re-ID of whole frames": _predictor(reid, video, frames),
        "Pipeline": _pipeline(detector, reid, video, frames),
    }
    timed = {what: [(steps(), stream()) for _ in range(rounds + 1)][1:] for what, (steps, stream) in pairs.items()}
    return [Overlap(what, *(tuple(form) for form in zip(*runs, strict=True))) for what, runs in timed.items()]


def _predictor(predictor: Predictor, video: str, frames: int) -> tuple[Callable[[], float], Callable[[], float]]:
    def steps() -> float:
        with StreamReader(video, drop="none") as reader:
            return _fps(predictor.predict([frame.image for frame in items]) for items in islice(reader, frames))

    def stream() -> float:
        with predictor.stream(video, drop="none") as results:
            return _fps(islice(results, frames))

    return steps, stream


def _pipeline(
    detector: Predictor, reid: Predictor, video: str, frames: int
) -> tuple[Callable[[], float], Callable[[], float]]:
    def steps() -> float:
        with Pipeline(detector, reid) as pipeline, StreamReader(video, drop="none") as reader:
            return _fps(pipeline.process(items) for items in islice(reader, frames))

    def stream() -> float:
        with Pipeline(detector, reid) as pipeline:
            return _fps(islice(pipeline.stream(video, drop="none"), frames))

    return steps, stream


def _fps(results: Iterable[object]) -> float:
    started = time.perf_counter()
    count = sum(1 for _ in results)
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
