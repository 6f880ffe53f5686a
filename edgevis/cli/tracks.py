"""List whom a video, a camera or an address shows: tracks with their names and times, for `enroll --from-track`."""

from __future__ import annotations

import argparse

from edgevis.cli._common import (
    add_engine_options,
    add_output_arguments,
    add_rate_argument,
    open_bundle,
    print_json,
    print_next,
    shown,
)
from edgevis.cli._tracks import add_seconds_argument, tracks_of
from runtime.common.addresses import without_password
from runtime.common.text import text_table
from runtime.pipeline import DETECTOR, IDENTIFIER


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a video, a camera's index, or an address such as rtsp://…")
    parser.add_argument("--detect", metavar="BUNDLE", help=f"the detector (default: {DETECTOR}, which comes along)")
    parser.add_argument(
        "--identify",
        metavar="BUNDLE",
        default=IDENTIFIER,
        help=f"the model that identifies (default: {IDENTIFIER}, which comes along)",
    )
    parser.add_argument("--enrolment", metavar="FILE", help="what `edgevis enroll` wrote")
    add_seconds_argument(parser)
    add_engine_options(parser)
    add_rate_argument(parser)
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    with open_bundle(arguments.identify, arguments, false_accept_rate=arguments.false_accept_rate) as predictor:
        if arguments.enrolment is not None:
            predictor.load(arguments.enrolment)
        tracks = tracks_of(arguments.detect, predictor, arguments.source, arguments)
    source = without_password(arguments.source)
    if arguments.json:
        print_json({"source": source, "tracks": [track.to_dict() for track in tracks]})
        return 0
    rows = [(str(track.number), shown(track.identity), str(track.frames), track.times) for track in tracks]
    print(text_table(("track", "identity", "frames", "there"), rows) if rows else f"{source} shows nobody")
    if rows:
        command = ("edgevis", "enroll", arguments.identify, "LABEL", source, "--from-track", "TRACK")
        print_next(*command, "--enrolment", "FILE")
    return 0
