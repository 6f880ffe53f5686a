"""Progress output of the export command lines."""

from __future__ import annotations

import sys
import time
from typing import IO

from runtime.common.text import progress_bar, size_text


class Reporter:
    """Prints one line per stage with its duration and size; on a terminal, a progress bar meanwhile."""

    def __init__(self, stream: IO[str], *, quiet: bool) -> None:
        self._stream = stream
        self._quiet = quiet
        self._bar = stream.isatty() and not quiet
        self._stage = ""
        self._began = 0.0

    def begin(self, stage: str) -> None:
        self._stage, self._began = stage, time.perf_counter()
        if self._bar:
            self._stream.write(f"\r\033[K{stage:<10} …")
            self._stream.flush()

    def advance(self, done: int, total: int) -> None:
        if self._bar:
            self._stream.write(f"\r\033[K{self._stage:<10} {progress_bar(done, total)}")
            self._stream.flush()

    def end(self, detail: str, *, size_bytes: int | None = None) -> None:
        self.line(self._stage, detail, time.perf_counter() - self._began, size_bytes)

    def warn(self, message: str) -> None:
        sys.stderr.write(f"{self._clear()}warning: {message}\n")

    def line(self, stage: str, detail: str, seconds: float, size_bytes: int | None = None) -> None:
        size = "" if size_bytes is None else size_text(size_bytes)
        self.write(f"{self._clear()}{stage:<10} {seconds:6.1f} s {size:>8}  {detail}\n")

    def write(self, text: str) -> None:
        if not self._quiet:
            self._stream.write(text)
            self._stream.flush()

    def _clear(self) -> str:
        return "\r\033[K" if self._bar else ""
