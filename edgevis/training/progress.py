"""How a training reports its progress: the protocol that the loop calls, and the console's implementation of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from runtime.common.text import progress_bar

_FIRST_LINE_S, _SECOND_LINE_S, _LINE_S = 10.0, 50.0, 300.0
"""Seconds without a line until the first, the second and each further line of a training without a terminal."""

_REDRAW_S = 0.1


@dataclass(frozen=True, slots=True)
class StepProgress:
    """How far a training is after one of its steps.

    Attributes:
        epoch: The epoch that it is in, from 1.
        epochs: How many there are.
        step: Finished steps of the epoch.
        steps: How many an epoch has.
        loss: Of the step.
        seconds: Spent on the training so far, in all its sessions.
        left_s: Estimated seconds until its end, evaluations included.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds: float
    left_s: float


class ProgressListener(Protocol):
    """Receives a training's progress; of several processes only the first reports."""

    def stage(self, what: str, done: int, total: int) -> None:
        """What is done besides steps, such as ``"reads the data"``; ``done == total`` ends it."""
        ...

    def step(self, progress: StepProgress) -> None:
        """Called after each step."""
        ...

    def epoch(self, row: Mapping[str, float], epochs: int, seconds: float, left_s: float) -> None:
        """Called after each epoch with its row of figures; times as of :class:`StepProgress`."""
        ...

    def note(self, message: str) -> None:
        """Anything else that the user should know, a sentence."""
        ...


class ConsoleProgress:
    """Writes a line for each epoch; within it, a live line on a terminal, and elsewhere a line now and then.

    The first line with the remaining time comes after 10 s, the next 50 s later, further ones every 5 minutes.

    Args:
        stream: A text stream, such as ``sys.stdout``.
        quiet: Whether to write nothing.
        clock: Seconds from any start.
    """

    def __init__(self, stream: Any, *, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._quiet, self._clock = stream, quiet, clock
        self._live = stream.isatty() and not quiet
        self._drawn = float("-inf")
        self._last_line = clock()
        self._gaps = [_FIRST_LINE_S, _SECOND_LINE_S]

    def stage(self, what: str, done: int, total: int) -> None:
        if self._live:
            self._draw("" if done >= total else f"{what} {progress_bar(done, total)}", now=done >= total)
        elif self._is_due() and done < total:
            self._line(f"{what}: {done} of {total}")

    def step(self, progress: StepProgress) -> None:
        where, left = f"epoch {progress.epoch}/{progress.epochs}", f"about {clock_text(progress.left_s)} left"
        if self._live:
            bar = progress_bar(progress.step, progress.steps)
            self._draw(f"{where}  {left} {bar}  loss {progress.loss:.4g}")  # what is cut off counts least
        elif self._is_due():
            spent = clock_text(progress.seconds)
            self._line(f"{where}, step {progress.step}/{progress.steps}  {spent}, {left}  loss {progress.loss:.4g}")

    def epoch(self, row: Mapping[str, float], epochs: int, seconds: float, left_s: float) -> None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        left = f", about {clock_text(left_s)} left" if row["epoch"] < epochs else ""
        self.note(f"epoch {int(row['epoch'])}/{epochs}  {clock_text(seconds)}{left}  {figures}")

    def note(self, message: str) -> None:
        if not self._quiet:
            self._stream.write(("\r\033[K" if self._live else "") + message + "\n")
            self._stream.flush()
        self._last_line = self._clock()

    def _is_due(self) -> bool:
        return self._clock() - self._last_line >= (self._gaps[0] if self._gaps else _LINE_S)

    def _line(self, message: str) -> None:
        self._gaps = self._gaps[1:]
        self.note(message)

    def _draw(self, text: str, *, now: bool = False) -> None:
        """Replace the live line, unless it was replaced a moment ago."""
        if now or self._clock() - self._drawn >= _REDRAW_S:
            self._drawn = self._clock()
            # A longer line would wrap, and could not be replaced.
            self._stream.write("\r\033[K" + text[: max(20, shutil.get_terminal_size().columns - 1)])
            self._stream.flush()


def clock_text(seconds: float) -> str:
    """A time as text: ``1:20:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
