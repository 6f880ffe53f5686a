"""Ctrl-C and termination during a training: they wait for the end of a step, so that its checkpoint can be written."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from runtime.common.command import Terminated

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAID = b"\nfinishes the step and writes a checkpoint; Ctrl-C again ends at once\n"
# A service manager signals the process and then its group: that is one request.
_ONE_REQUEST_S = 10.0


class StopRequest:
    """Remembers the signal that asks a training to end; a context manager, which holds the handlers.

    Signals that are ignored, or would end the process at once, stay as they are. In another thread than the main one
    nothing changes. Forked children treat signals as without it, but Ctrl-C is their parent's.

    Args:
        leads: Whether this is the process that decides; others pass Ctrl-C over, for the first one tells them.
    """

    def __init__(self, *, leads: bool = True) -> None:
        self.number: int | None = None
        self._leads, self._owner, self._since = leads, os.getpid(), 0.0
        self._waits = True
        self._former: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler) and (self._leads or number == signal.SIGINT):
                    self._former[number] = handler
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block in which a signal raises as without this class, for work that nothing is lost of."""
        self.raise_if_asked()
        self._waits = False
        try:
            yield
        finally:
            self._waits = True

    def raise_if_asked(self) -> None:
        """Raise what the signal would have raised: KeyboardInterrupt, or its subclass Terminated."""
        if self.number is not None:
            raise KeyboardInterrupt if self.number == signal.SIGINT else Terminated(self.number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner or not self._leads:
            if number != signal.SIGINT:
                self._former[number](number, frame)
        elif not self._waits:
            self._former[number](number, frame)
        elif self.number is None:
            self.number, self._since = number, time.monotonic()
            with contextlib.suppress(OSError):  # not through sys.stderr, which may be in the middle of a write
                os.write(2, _SAID)
        elif number == signal.SIGINT or time.monotonic() - self._since > _ONE_REQUEST_S:
            self._former[number](number, frame)
