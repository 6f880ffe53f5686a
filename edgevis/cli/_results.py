"""Prints results of many pictures one by one: as table rows, JSON lines, or the entries of one JSON object."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

from edgevis import EdgevisError, InputError
from edgevis.cli._common import json_text
from runtime.common.console import report
from runtime.common.text import row_format

Entry = dict[str, Any]


class Results(Protocol):
    """A writer of results; as a context manager it completes its output even if the work fails."""

    def __enter__(self) -> Results: ...

    def add(self, entry: Entry, cells: Sequence[str], size: tuple[int, int]) -> None:
        """Write one result, given as JSON data and as a table row; ``size`` is the picture's (H, W)."""
        ...

    def add_failure(self, name: str, error: Exception) -> None:
        """Write a failure for a picture without a result; the message also goes to standard error."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def results_for(
    arguments: argparse.Namespace,
    head: Entry,
    headers: Sequence[str],
    widths: Callable[[], Sequence[int]],
    *,
    endless: bool = False,
) -> Results:
    """The writer for ``--format json`` or ``jsonl``, otherwise a table.

    Args:
        arguments: The verb's, after :func:`settle_format`.
        head: What the JSON object says besides its results.
        headers, widths: Of the table's columns; a negative width is one of numbers, to the right.
        endless: Whether nobody knows when the results end: ``--json`` then prints lines, too.
    """
    if arguments.format == "json" and not endless:
        return _Object(head)
    return _Lines() if arguments.format in ("json", "jsonl") else _Table(headers, widths())


def settle_format(arguments: argparse.Namespace) -> None:
    """Set ``format`` from ``--format``, or from ``--json`` or ``--jsonl``, its short forms; InputError for two."""
    short = [name for name in ("json", "jsonl") if getattr(arguments, name)]
    if len(short) > 1:
        raise InputError("--json prints one object, --jsonl one for each image; give one of them")
    if short and arguments.format not in (None, *short):
        raise InputError(f"--{short[0]} is --format {short[0]}, and --format is {arguments.format}; give one of them")
    arguments.format = arguments.format or (short[0] if short else "table")


class ResultsBase:
    """What most writers share: nothing to begin or end, and a failure that only goes to standard error."""

    def __enter__(self) -> Results:
        return self  # type: ignore[return-value]  # its classes are Results

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def add_failure(self, name: str, error: Exception) -> None:
        report(error)


class _Table(ResultsBase):
    """A table with a row for each picture; the header is printed before the first row."""

    def __init__(self, headers: Sequence[str], widths: Sequence[int]) -> None:
        self._headers, self._row, self._begun = headers, row_format(headers, widths), False

    def add(self, entry: Entry, cells: Sequence[str], size: tuple[int, int]) -> None:
        if not self._begun:
            print(self._row(self._headers))
            print(self._row(None))
            self._begun = True
        print(self._row(cells), flush=True)


class _Lines(ResultsBase):
    """JSON lines: one object for each picture."""

    def add(self, entry: Entry, cells: Sequence[str], size: tuple[int, int]) -> None:
        print(json_text(entry), flush=True)

    def add_failure(self, name: str, error: Exception) -> None:
        report(error)
        print(json_text({"image": name, "error": str(error)}), flush=True)


class _Object(ResultsBase):
    """One JSON object with a growing list ``results``; it is always closed, so that the output is valid JSON."""

    def __init__(self, head: Entry) -> None:
        self._head, self._count, self._failed = head, 0, 0

    def __enter__(self) -> Results:
        begun = json_text(self._head, indent=2).rstrip("}\n")
        print(f'{begun}{"," if self._head else ""}\n  "results": [', end="", flush=True)
        return self

    def add(self, entry: Entry, cells: Sequence[str], size: tuple[int, int]) -> None:
        print("," if self._count else "")
        print(textwrap.indent(json_text(entry, indent=2), "    "), end="", flush=True)
        self._count += 1

    def add_failure(self, name: str, error: Exception) -> None:
        report(error)
        self._failed += 1
        self.add({"image": name, "error": str(error)}, (), (0, 0))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, EdgevisError):
            return  # most likely from standard output itself
        ended = "interrupted" if kind is KeyboardInterrupt else str(error) or type(error).__name__
        stopped = "" if error is None else f',\n  "stopped": {json_text(ended)}'
        sys.stdout.write(("\n  ]" if self._count else "]") + f',\n  "failed": {self._failed}{stopped}\n}}\n')
