"""Speed and accuracy of the pipeline on labelled videos: ``python -m benchmarks.pipeline``.

Each video goes through detection, tracking and Re-ID, and through the same detector and tracker without Re-ID; its
detections go through the trackers of other packages that are installed, see :mod:`benchmarks.other_trackers`. Labels
are CSV files with the columns ``frame`` (from 1), ``id``, ``x``, ``y``, ``w``, ``h`` in pixels.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.other_trackers import other_trackers
from edgevis import (
    Detections,
    EdgevisError,
    Frame,
    Pipeline,
    PipelineSettings,
    PipelineStats,
    Predictor,
    SourceError,
    TrackedObject,
)
from edgevis.metrics.tracking import FrameBoxes, TrackingScores, tracking_scores
from runtime.common.json_data import to_json
from runtime.common.text import markdown_table, text_table
from runtime.streams.reader import StreamReader
from runtime.streams.video_file import frames_per_second
from runtime.streams.video_output import FRAMES_PER_SECOND
from runtime.tracking.objects import UNKNOWN

_SCORES = ("HOTA", "DetA", "AssA", "IDF1", "MOTA", "switches", "names")
HEADERS = ("video", "system", *_SCORES, "fps", "detect", "track", "identify")
WHAT = "IoU 0.5 for IDF1 and MOTA; frames per second with decoding; milliseconds for one frame by stage"


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """One system on one video.

    Attributes:
        video, system: Their names.
        scores: See :class:`edgevis.metrics.TrackingScores`.
        names: Different identities that it gave.
        fps: Frames per second, from the file to the result.
        stage_ms: Milliseconds for one frame by stage; empty for a tracker alone.
        dropped: Frames that were dropped.
    """

    video: str
    system: str
    scores: TrackingScores
    names: int
    fps: float
    stage_ms: dict[str, float]
    dropped: int

    def cells(self) -> tuple[str, ...]:
        """A table's row."""
        scores = self.scores
        shares = (scores.hota, scores.deta, scores.assa, scores.idf1, scores.mota)
        stages = (self.stage_ms.get(stage) for stage in ("detect", "track", "identify"))
        return (
            self.video,
            self.system,
            *(f"{value:.3f}" for value in shares),
            str(scores.switches),
            str(self.names),
            f"{self.fps:.1f}" if self.fps else "–",
            *("–" if value is None else f"{value:.2f}" for value in stages),
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write it where asked; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--detect", required=True, help="a detector's bundle")
    parser.add_argument("--identify", required=True, help="a Re-ID bundle")
    parser.add_argument("--video", nargs="+", required=True, help="videos")
    parser.add_argument("--labels", nargs="+", required=True, help="a CSV file for each")
    parser.add_argument("--threads", type=int, help="CPU threads for each engine (default: the backend's choice)")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args(argv)
    try:
        if len(arguments.video) != len(arguments.labels):
            raise SourceError(
                f"{len(arguments.labels)} label files for {len(arguments.video)} videos; give one for each"
            )
        runs = [
            run
            for video, labels in zip(arguments.video, arguments.labels, strict=True)
            for run in measure(arguments.detect, arguments.identify, video, labels, threads=arguments.threads)
        ]
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = [run.cells() for run in runs]
    print(text_table(HEADERS, rows))
    print(f"\n{WHAT}\n\n{markdown_table(HEADERS, rows)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([to_json(run) for run in runs], indent=2) + "\n")
    return 0


def measure(
    detect: str, identify: str, video: str, labels: str, *, threads: int | None = None
) -> Iterator[PipelineRun]:
    """The runs of all systems on one video."""
    truth = read_labels(Path(labels))
    name = Path(video).name
    with Predictor(detect, threads=threads) as detector, Predictor(identify, threads=threads) as reid:
        systems: tuple[tuple[str, Predictor | bool], ...] = (("with Re-ID", reid), ("without Re-ID", False))
        for system, model in systems:
            results, stats, seconds = watched(detector, model, video)
            frames = len(results)
            tracks = [_boxes(objects) for objects in (_by_identity(results) if model else _by_track(results))]
            scores = tracking_scores([truth.get(index, _NOBODY) for index in range(frames)], tracks)
            names = len({identity for ids, _ in tracks for identity in ids})
            dropped = sum(source.dropped for source in stats.sources)
            yield PipelineRun(name, system, scores, names, frames / seconds, dict(stats.stage_ms), dropped)
        yield from _others(detector, video, truth)


def watched(
    detector: Predictor, identify: Predictor | bool, video: str
) -> tuple[list[tuple[TrackedObject, ...]], PipelineStats, float]:
    """The objects of each frame of a video, the pipeline's counts, and the seconds that it took."""
    classes = ["person"] if "person" in detector.labels else None
    with Pipeline(detector, identify if isinstance(identify, Predictor) else False, classes=classes) as pipeline:
        started = time.perf_counter()
        results = [objects for _, objects in pipeline.stream(video, drop="none")]
        return results, pipeline.stats, time.perf_counter() - started


def read_labels(path: Path) -> dict[int, FrameBoxes]:
    """The objects by frame, from 0; SourceError when the file is no such CSV."""
    rows: dict[int, list[tuple[str, list[float]]]] = defaultdict(list)
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                x, y, width, height = (float(row[column]) for column in ("x", "y", "w", "h"))
                rows[int(row["frame"]) - 1].append((row["id"], [x, y, x + width, y + height]))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise SourceError(f"{path} has no columns frame, id, x, y, w, h with numbers: {error!r}") from error
    return {frame: ([name for name, _ in items], np.array([box for _, box in items])) for frame, items in rows.items()}


_NOBODY: FrameBoxes = ((), np.empty((0, 4)))


def _by_identity(results: Sequence[Sequence[TrackedObject]]) -> list[list[tuple[str, TrackedObject]]]:
    """Each object with its identity; of the frames before a track's first decision, the one that it came to."""
    named: list[list[tuple[str, TrackedObject]]] = []
    decided: dict[int, str] = {}
    for objects in reversed(results):
        for item in objects:
            if item.identity != UNKNOWN:
                decided[item.track] = item.identity
        named.append([(decided.get(item.track, f"track {item.track}"), item) for item in objects])
    return named[::-1]


def _by_track(results: Sequence[Sequence[TrackedObject]]) -> list[list[tuple[str, TrackedObject]]]:
    return [[(f"track {item.track}", item) for item in objects] for objects in results]


def _boxes(objects: Sequence[tuple[str, TrackedObject]]) -> FrameBoxes:
    boxes = [item.box_xyxy for _, item in objects]
    return [name for name, _ in objects], np.stack(boxes) if boxes else np.empty((0, 4))


def _others(detector: Predictor, video: str, truth: dict[int, FrameBoxes]) -> Iterator[PipelineRun]:
    """The trackers of other packages on the detections that the pipeline's tracker is given."""
    task: Any = detector.task
    score = PipelineSettings().detection_score
    detected: list[tuple[Detections, tuple[int, int]]] = []
    with StreamReader(video, drop="none") as reader:
        frame: Frame
        for (frame,) in reader:
            found = task.detect([frame.image], score=score)[0]
            persons = found[np.array([label == "person" for label in found.labels], bool)]
            detected.append((persons, (frame.image.shape[0], frame.image.shape[1])))
    for name, update in other_trackers(frames_per_second(Path(video)) or FRAMES_PER_SECOND):
        tracks = [update(*item) for item in detected]
        scores = tracking_scores([truth.get(index, _NOBODY) for index in range(len(tracks))], tracks)
        names = len({identity for ids, _ in tracks for identity in ids})
        yield PipelineRun(Path(video).name, name, scores, names, 0.0, {}, 0)


if __name__ == "__main__":
    sys.exit(main())
