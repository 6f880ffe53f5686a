"""An app for one camera: notes who was there and when, and keeps a picture of each unknown.

    python examples/one_camera.py rtsp://camera.local/stream1 --enrolment lobby.enrolment --output visits

``visits/visits.csv`` gets a line for each visit, ``visits/unknown-7.jpg`` shows who that is. To give them a name, call
``pipeline.rename("unknown-7", "carol")`` while the app runs, such as from a button.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2

from edgevis import EdgevisError, Pipeline
from runtime.events.detector import EventDetector


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="a camera's index, an address or a video")
    parser.add_argument("--detect", help="a detector's bundle (default: the person detector that comes along)")
    parser.add_argument("--identify", help="a Re-ID bundle (default: the one that comes along)")
    parser.add_argument("--enrolment", help="what `edgevis enroll` wrote")
    parser.add_argument("--output", type=Path, default=Path("visits"))
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    try:
        note_visits(arguments)
    except KeyboardInterrupt:
        return 130
    except EdgevisError as error:  # no camera, wrong password, a bundle that is none
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def note_visits(arguments: argparse.Namespace) -> None:
    """Watch until the source ends."""
    events = EventDetector(left_after_s=3.0)
    with (
        Pipeline(arguments.detect, arguments.identify, enrolment=arguments.enrolment) as pipeline,
        (arguments.output / "visits.csv").open("a", newline="", encoding="utf-8") as file,
    ):
        visits = csv.writer(file)
        try:
            for frame, people in pipeline.stream(arguments.source):
                for event in events.update(frame, people):
                    if event.type == "left":
                        visits.writerow((event.time, event.identity, f"{event.seconds:.1f}"))
                        file.flush()
                    elif event.type == "appeared" and event.label is None:
                        x0, y0, x1, y1 = (round(value) for value in event.box_xyxy)
                        cv2.imwrite(str(arguments.output / f"{event.identity}.jpg"), frame.image[y0:y1, x0:x1])
        finally:  # of those who are still there, also after Ctrl-C
            for event in events.close():
                visits.writerow((event.time, event.identity, f"{event.seconds:.1f}"))
        print(f"{pipeline.stats.frames} frames, {pipeline.stats.tracks} tracks")


if __name__ == "__main__":
    sys.exit(main())
