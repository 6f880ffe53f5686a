"""The command ``python -m export.build``, which builds a bundle; the work is in :mod:`export.stages`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from runtime.common.command import run_command
from runtime.common.console import log_to_stderr, report
from runtime.common.extras import require_extra
from runtime.errors import EdgevisError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one build; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m export.build")

    def parse_and_run() -> int:
        require_extra("export", what="a build")
        add_arguments(parser)
        arguments = parser.parse_args(argv)
        with log_to_stderr(arguments):
            return run(arguments)

    return run_command(parse_and_run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the description and the arguments of a build; needs the extra ``export``."""
    from export import arguments

    arguments.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run a build with parsed arguments, or list the models and targets; returns the process's exit status."""
    return run_command(lambda: _run(arguments), interrupted="nothing was written")


def _run(arguments: argparse.Namespace) -> int:
    from export.arguments import contradiction
    from export.report import list_all

    if arguments.list:
        return list_all(as_json=arguments.json)
    if problem := contradiction(arguments):
        arguments.usage_error(problem)
    try:
        return _build(arguments)
    except (EdgevisError, OSError) as error:  # OSError: the disk is full, the folder is read-only
        report(error)
        sys.stderr.write("no bundle was written\n")
        return 1


def _build(arguments: argparse.Namespace) -> int:
    from export.arguments import request_from
    from export.report import print_report
    from export.reporter import Reporter

    started = time.perf_counter()
    # With --json, standard output holds nothing but the object.
    reporter = Reporter(sys.stderr if arguments.json else sys.stdout, quiet=bool(arguments.quiet))
    reporter.begin("start")
    request = request_from(arguments)  # imports torch
    from export.stages import build_bundle

    reporter.end(f"{request.entry.name} for {request.target}")
    bundle = build_bundle(request, reporter)
    print_report(bundle, reporter, seconds=time.perf_counter() - started, as_json=arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
