"""Standard output and error of the command lines: encoding, log records, and write errors, each reported once."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import OutputError


def prepare_streams() -> None:
    """Make standard output and error accept any text: characters that the terminal cannot encode become escapes.

    Raises:
        OutputError: Standard output is closed: nothing could be told, so nothing is to be begun.
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


def report(message: object, *, kind: str = "error") -> None:
    """Write one line to standard error, ignoring errors of the write."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{kind}: {message}\n")
        sys.stderr.flush()


def add_verbosity(parser: argparse.ArgumentParser, *, progress: bool = False) -> None:
    """Add ``-v`` and ``-q``, for :func:`log_to_stderr`.

    Args:
        parser: The command line's.
        progress: Whether the command prints what it is doing: the first ``-q`` then leaves that out, and only the
            second one the warnings. ``arguments.quiet`` is how many there are.
    """
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="say also what goes as it should; -vv everything"
    )
    quiet = "no progress and no table; warnings and errors remain; with -qq only errors" if progress else "no warnings"
    parser.add_argument("-q", "--quiet", action="count", default=0, help=quiet)
    parser.set_defaults(prints_progress=progress)


@contextmanager
def log_to_stderr(arguments: argparse.Namespace) -> Iterator[None]:
    """Write the records of the log ``edgevis`` to standard error, one line each; a repeated line is written once.

    Args:
        arguments: Those of a parser with :func:`add_verbosity`. Warnings and errors are written; with ``-v`` also
            information, with ``-vv`` everything, with ``-q`` errors only.
    """
    log = logging.getLogger("edgevis")
    handler, level = _StandardError(), log.level
    log.addHandler(handler)
    quieter = min(max(arguments.quiet - arguments.prints_progress, 0), 1)
    log.setLevel(logging.WARNING + 10 * (quieter - min(arguments.verbose, 2)))
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


class _StandardError(logging.Handler):
    """Calls :func:`report`, once for each line."""

    def __init__(self) -> None:
        super().__init__()
        self._written: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._written:
            self._written.add(text)
            report(text, kind=record.levelname.lower())


def end_output(status: int) -> int:
    """Flush standard output; returns the exit status, 1 in place of 0 where the flush fails.

    Python would try again when the process ends, complain in its own way and change the status.
    """
    if sys.stdout is None:
        return status
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has gone
        abandon_output()
    except OSError as error:
        abandon_output()
        if status == 0:
            report(error)
            return 1
    return status


def abandon_output() -> None:
    """Discard what standard output still buffers."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed already, or not a file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
