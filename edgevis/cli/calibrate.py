"""Measure the open-set threshold of an enrolment on strangers: images, or a video, in which nobody is enrolled.

Afterwards --false-accept-rate is the share of such strangers for whom any label comes back, also when labels are added
and forgotten. The strangers' embeddings are kept in the enrolment: they are biometric data, too.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edgevis import InputError
from edgevis.cli._common import (
    add_engine_arguments,
    add_output_arguments,
    add_rate_argument,
    image_paths,
    open_predictor,
    print_json,
)
from runtime.common.json_data import to_json
from runtime.enrolment.file import check_enrolment_path
from runtime.images.decode import SUFFIXES
from runtime.open_set.text import open_set_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument("--enrolment", metavar="FILE", required=True, help="what `edgevis enroll` wrote")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--strangers",
        metavar="PATH",
        nargs="+",
        help="a video – a minute of the camera's own – or image files or folders; 20 images at least, 100 for 1 %%",
    )
    what.add_argument("--forget", action="store_true", help="remove the strangers from the enrolment again")
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    check_enrolment_path(arguments.enrolment)
    with open_predictor(arguments) as predictor:
        predictor.load(arguments.enrolment)
        if predictor.info.open_set is None:
            raise InputError(f"the task {predictor.info.task!r} has no scores between labels: nothing to calibrate")
        if arguments.false_accept_rate is not None:
            predictor.false_accept_rate = arguments.false_accept_rate  # so that the file keeps it
        open_set = predictor.calibrate(None if arguments.forget else _source(arguments.strangers))
        predictor.update(arguments.enrolment)
    if arguments.json:
        print_json({"enrolment": arguments.enrolment, "open_set": to_json(open_set)})
        return 0
    print("\n".join(open_set_lines(open_set)))
    print(f"next: edgevis predict {arguments.bundle} IMAGE --enrolment {arguments.enrolment}")
    return 0


def _source(names: list[str]) -> str | list[Path]:
    """A single file that is no image is a video; everything else is images."""
    if len(names) == 1 and not os.path.isdir(names[0]) and Path(names[0]).suffix.lower() not in SUFFIXES:
        return names[0]
    return image_paths(names)
