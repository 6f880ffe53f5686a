"""An app for several cameras: one engine for all, one name for each person, and where each was seen last.

    python examples/several_cameras.py rtsp://door.local/1 rtsp://hall.local/1 0 --enrolment staff.enrolment

A camera that is lost is reported and opened again, while the others go on; Ctrl-C ends all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edgevis import EdgevisError, Pipeline


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sources", nargs="+", help="cameras' indices, addresses or videos, two or more")
    parser.add_argument("--detect", help="a detector's bundle (default: the person detector that comes along)")
    parser.add_argument("--identify", help="a Re-ID bundle (default: the one that comes along)")
    parser.add_argument("--enrolment", help="what `edgevis enroll` wrote")
    arguments = parser.parse_args(argv)
    seen: dict[str, int] = {}
    try:
        with Pipeline(arguments.detect, arguments.identify, enrolment=arguments.enrolment) as pipeline:
            stream = pipeline.stream(
                arguments.sources,
                batch=len(arguments.sources),  # a frame of each camera through the engine at once
                on_error=lambda error: print(f"error: {error}", file=sys.stderr),
            )
            for frame, people in stream:
                for person in people:
                    if person.identity != "unknown" and seen.get(person.identity) != frame.source:
                        before = seen.get(person.identity)
                        seen[person.identity] = frame.source
                        names = [source.source for source in pipeline.stats.sources]  # without passwords
                        came = "" if before is None else f", before at {names[before]}"
                        print(f"{person.identity} at {names[frame.source]}{came}", flush=True)
            for source in pipeline.stats.sources:
                print(f"{source.source}: {source.frames} frames, {source.dropped} dropped, {source.fps:.1f} a second")
    except KeyboardInterrupt:
        return 130
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
