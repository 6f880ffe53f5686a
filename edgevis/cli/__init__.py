"""The command ``edgevis``. Each file here is one verb and its name is the verb's; none of them needs torch."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, cast

from edgevis import EdgevisError, OutputError, __version__
from edgevis.cli._common import report
from runtime.discovery import names_in


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
        modules[spoken] = verb
    warnings.showwarning = _show_warning
    try:
        _prepare_streams()
        arguments = parser.parse_args(argv)
        status = modules[arguments.verb].run(arguments)
        sys.stdout.flush()
        return status
    except EdgevisError as error:
        report(error)
        status = 1
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader, such as `head`, has gone
        _abandon_output()
        return 0
    except MemoryError as error:
        report(f"out of memory: {error or 'give smaller or fewer images'}")
        status = 1
    except OSError as error:
        report(error)
        status = 1
    # What was printed before the error; if that is what failed, Python would try and complain again when it ends.
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            _abandon_output()
    return status


def _prepare_streams() -> None:
    """Standard output that takes any text, with escapes for what an ASCII terminal or a name that is no text has.

    Raises:
        OutputError: Standard output is closed: nothing could be told, so nothing is begun.
    """
    for descriptor in (0, 1, 2):  # else the next file that is opened would be what libraries take for the terminal
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process
    if sys.stdout is None:
        raise OutputError("standard output is closed; redirect it to a file, or to /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _abandon_output() -> None:
    """Python flushes standard output once more when it ends, and would complain of the same error again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):  # closed already, or not a file
        pass


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    report(message, kind="warning")
