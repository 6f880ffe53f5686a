"""``python -m export.build``: a PyTorch model becomes a bundle. Its command; the work is in :mod:`export.stages`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from export.arguments import build_parser, contradiction, request_from
from export.report import list_all, print_report
from export.reporter import Reporter
from runtime.common.command import run_command
from runtime.common.console import report
from runtime.errors import EdgevisError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one build; returns the process's exit status."""
    return run_command(lambda: _main(argv), interrupted="nothing was written")


def _main(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.list:
        return list_all(as_json=arguments.json)
    if problem := contradiction(arguments):
        parser.error(problem)
    try:
        return _build(arguments)
    except (EdgevisError, OSError) as error:  # OSError: the disk is full, the folder is read-only
        report(error)
        sys.stderr.write("nothing was written\n")
        return 1


def _build(arguments: argparse.Namespace) -> int:
    started = time.perf_counter()
    # With --json, standard output holds nothing but the object.
    reporter = Reporter(sys.stderr if arguments.json else sys.stdout, quiet=arguments.quiet)
    reporter.begin("start")
    request = request_from(arguments)  # imports torch
    from export.stages import build_bundle

    reporter.end(f"{request.entry.name} for {request.target}")
    bundle = build_bundle(request, reporter)
    print_report(bundle, reporter, seconds=time.perf_counter() - started, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
