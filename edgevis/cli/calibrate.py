"""Measure the open-set threshold of an enrolment on strangers: images, or a video, in which nobody is enrolled.

Of a video, a camera or an address the persons are taken whom `edgevis watch` would detect, where the model identifies
persons; for another model whole frames, or with --detect what that detector finds. Afterwards --false-accept-rate is
the share of such strangers for whom any label comes back, also when labels are added and forgotten. The strangers'
embeddings are kept in the enrolment: they are biometric data, too.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edgevis import InputError, Pipeline, Predictor
from edgevis.cli._common import (
    add_engine_arguments,
    add_output_arguments,
    add_rate_argument,
    image_paths,
    open_bundle,
    open_predictor,
    print_json,
    print_next,
)
from edgevis.cli._streams import Stream, stream_of
from edgevis.cli._tracks import add_seconds_argument
from runtime.common.json_data import to_json
from runtime.enrolment.file import check_enrolment_path
from runtime.images.decode import SUFFIXES
from runtime.open_set.decision import OpenSetInfo
from runtime.open_set.text import open_set_lines
from runtime.pipeline import DETECTOR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument("--enrolment", metavar="FILE", required=True, help="what `edgevis enroll` wrote")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--strangers",
        metavar="PATH",
        nargs="+",
        help="a video – a minute of the camera's own –, a camera or an address, or image files or folders, of persons "
        "cut out as a detector would; 20 views at least, 100 for 1 %%",
    )
    what.add_argument("--forget", action="store_true", help="remove the strangers from the enrolment again")
    parser.add_argument(
        "--detect",
        metavar="BUNDLE",
        help=f"of a video: the detector (default, for persons: {DETECTOR}, which comes along)",
    )
    parser.add_argument(
        "--except-track",
        metavar="TRACK",
        nargs="+",
        type=int,
        default=[],
        help="of a video: the numbers of tracks that show somebody enrolled, as `edgevis tracks` lists them with this "
        "enrolment",
    )
    add_seconds_argument(parser)
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.forget:
        _refuse_detection(arguments)
    check_enrolment_path(arguments.enrolment)
    with open_predictor(arguments) as predictor:
        predictor.load(arguments.enrolment)
        if predictor.info.open_set is None:
            raise InputError(f"the task {predictor.info.task!r} has no scores between labels: nothing to calibrate")
        if arguments.false_accept_rate is not None:
            predictor.false_accept_rate = arguments.false_accept_rate  # so that the file keeps it
        open_set = predictor.calibrate(None) if arguments.forget else _calibrated(predictor, arguments)
        predictor.update(arguments.enrolment)
    if arguments.json:
        print_json({"enrolment": arguments.enrolment, "open_set": to_json(open_set)})
        return 0
    print("\n".join(open_set_lines(open_set)))
    print_next("edgevis", "predict", arguments.bundle, "IMAGE", "--enrolment", arguments.enrolment)
    return 0


def _calibrated(predictor: Predictor, arguments: argparse.Namespace) -> OpenSetInfo:
    names: list[str] = arguments.strangers
    stream = _stream(names)
    detected = stream is not None and (predictor.info.task == "reid" or arguments.detect is not None)
    if not detected:
        _refuse_detection(arguments)
    if stream is None:
        return predictor.calibrate(image_paths(names))
    if not detected:
        return predictor.calibrate(stream)
    with (
        open_bundle(DETECTOR if arguments.detect is None else arguments.detect, arguments) as detector,
        Pipeline(detector, predictor) as pipeline,
    ):
        return pipeline.calibrate(stream, seconds=arguments.seconds, without=arguments.except_track)


def _refuse_detection(arguments: argparse.Namespace) -> None:
    if arguments.detect or arguments.except_track or arguments.seconds is not None:
        raise InputError("--detect, --except-track and --seconds are for one video, camera or address with detection")


def _stream(names: list[str]) -> Stream | None:
    """What is streamed: also a single file that is no image, whatever its name ends with."""
    stream = stream_of(names)
    if stream is None and len(names) == 1 and os.path.isfile(names[0]):
        path = Path(names[0])
        return None if path.suffix.lower() in SUFFIXES else path
    return stream
