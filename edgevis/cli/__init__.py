"""The command ``edgevis``. Each file here is one verb and its name is the verb's; none of them needs torch."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Protocol, cast

from edgevis import __version__
from runtime.common.command import run_command
from runtime.common.console import abandon_output, add_verbosity, log_to_stderr
from runtime.common.discovery import names_in


class Verb(Protocol):
    """What a module in this package offers."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; the process's exit status."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; an error of ours becomes one line on standard error and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="edgevis", description="Run, enrol, inspect and prove edgevis bundles on this machine."
    )
    parser.add_argument("--version", action="version", version=f"edgevis {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    modules: dict[str, Verb] = {}
    for name in names_in(__name__):
        verb = cast(Verb, importlib.import_module(f"{__name__}.{name}"))
        text = verb.__doc__ or ""  # python -OO has none
        spoken = name.replace("_", "-")  # a module's name cannot have a hyphen
        sub = verbs.add_parser(spoken, help=text.partition("\n")[0], description=text)
        verb.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        add_verbosity(sub)
        modules[spoken] = verb

    def run() -> int:
        arguments = parser.parse_args(argv)
        try:
            with log_to_stderr(arguments.verbose, arguments.quiet):
                return modules[arguments.verb].run(arguments)
        except BrokenPipeError:  # the reader, such as `head`, has gone
            abandon_output()
            return 0

    return run_command(run)
