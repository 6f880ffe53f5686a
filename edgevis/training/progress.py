"""How a training reports its progress: the protocol that the loop calls, and the console's implementation of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from runtime.common.text import progress_bar

_MANY_FILES = 1000


class ProgressListener(Protocol):
    """Receives a training's progress; of several processes only the first reports."""

    def reading(self, done: int, total: int) -> None: ...

    def step(self, epoch: int, done: int, total: int, loss: float) -> None: ...

    def epoch(self, row: Mapping[str, float], epochs: int, seconds: float) -> None: ...

    def note(self, message: str) -> None: ...


class ConsoleProgress:
    """Writes a line for each epoch, and on a terminal a bar within each epoch and while the data are read.

    Args:
        stream: A text stream, such as ``sys.stdout``.
        quiet: Whether to write nothing.
    """

    def __init__(self, stream: Any, *, quiet: bool) -> None:
        self._stream, self._quiet = stream, quiet
        self._bar = stream.isatty() and not quiet

    def reading(self, done: int, total: int) -> None:
        if self._bar and (done == total or done % max(1, total // 100) == 0):
            self._stream.write("\r\033[K" + ("" if done == total else f"data {progress_bar(done, total)}"))
            self._stream.flush()
        elif not self._bar and done == 0 and total >= _MANY_FILES:
            self.note(f"reads {total} files to check the data")

    def step(self, epoch: int, done: int, total: int, loss: float) -> None:
        if self._bar:
            self._stream.write(f"\r\033[Kepoch {epoch + 1} {progress_bar(done, total)}  loss {loss:.4f}")
            self._stream.flush()

    def epoch(self, row: Mapping[str, float], epochs: int, seconds: float) -> None:
        done = int(row["epoch"])
        left = seconds / done * (epochs - done)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        self.note(f"epoch {done}/{epochs}  {_clock(seconds)}, {_clock(left)} left  {figures}")

    def note(self, message: str) -> None:
        if not self._quiet:
            self._stream.write(("\r\033[K" if self._bar else "") + message + "\n")
            self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
