"""The command ``edgevis``. Each file here is one verb and its name is the verb's; none of them needs torch."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, cast

from edgevis import EdgevisError, __version__
from runtime.discovery import names_in


class Verb(Protocol):
    """What a module in this package offers."""

    __doc__: str

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
        summary = verb.__doc__.partition("\n")[0]
        spoken = name.replace("_", "-")  # a module's name cannot have a hyphen
        sub = verbs.add_parser(spoken, help=summary, description=verb.__doc__)
        verb.add_arguments(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        modules[spoken] = verb
    arguments = parser.parse_args(argv)
    warnings.showwarning = _show_warning
    try:
        status = modules[arguments.verb].run(arguments)
        sys.stdout.flush()
        return status
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has gone; Python would complain once more while it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
