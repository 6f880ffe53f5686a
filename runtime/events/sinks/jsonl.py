"""Events as JSON lines, on standard output or added to a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from runtime.errors import OutputError

SCHEMES = ("",)


def open_sink(address: str) -> JsonLines:
    """JSON lines: ``jsonl`` and ``-`` are standard output, anything else is a file's path."""
    return JsonLines(None if address in ("jsonl", "-") else Path(address))


class JsonLines:
    """Writes one line for each event and flushes it.

    Events name people: a file that is made here can be read by its owner alone.

    Args:
        path: The file, which is made if there is none; None for standard output.

    Raises:
        OutputError: It cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        if path is not None:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._file = os.fdopen(descriptor, "a", encoding="utf-8")
            except OSError as error:
                raise OutputError(f"events cannot be written to {path}: {error}") from error

    def send(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, allow_nan=False) + "\n"
        if self._file is None:
            sys.stdout.write(line)
            sys.stdout.flush()
            return
        try:
            self._file.write(line)
            self._file.flush()
        except (OSError, ValueError) as error:
            raise OutputError(f"events cannot be written to {self._path}: {error}") from error

    def close(self, *, timeout_s: float = 5.0) -> None:
        if self._file is not None:
            try:
                self._file.close()  # tries again what could not be written
            except OSError as error:
                raise OutputError(f"events cannot be written to {self._path}: {error}") from error
