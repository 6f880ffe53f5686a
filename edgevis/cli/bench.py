"""Time every engine of a bundle on this machine, one round of each in turn, so that a busy machine favours none."""

from __future__ import annotations

import argparse

from edgevis.cli._common import add_output_arguments, add_precision_argument, print_json
from runtime.bundle.bundle import Bundle
from runtime.common.json_data import to_json
from runtime.common.text import text_table
from runtime.verification.timing import HEADERS, MEASURED, batch_sizes, time_engines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder NAME.edgevis")
    parser.add_argument("--batch", default="1,8", help="batch sizes, separated by commas (default: 1,8)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each batch size (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads for the engines (default: the backend's choice)")
    add_precision_argument(parser, default="all")
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle(arguments.bundle)
    timings = time_engines(
        bundle,
        batch_sizes(arguments.batch),
        seconds=arguments.seconds,
        threads=arguments.threads,
        precision=arguments.precision,
    )
    if arguments.json:
        print_json({"bundle": str(bundle.path), "measured": MEASURED, "results": to_json(timings)})
    else:
        print(text_table(HEADERS, [timing.cells() for timing in timings]))
    return 0
