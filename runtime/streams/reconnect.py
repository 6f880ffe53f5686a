"""Waiting times between attempts to open a camera again."""

from __future__ import annotations

import random
import time

FIRST_S = 0.25
LONGEST_S = 30.0
LONGEST_ALIVE_S = 2.0
_ATTEMPTS_ALIVE = 3  # FIRST_S, doubled so often, is LONGEST_ALIVE_S


class Backoff:
    """Exponential back-off with jitter: each waiting time is drawn from the upper half of one that doubles.

    Without jitter all readers of a camera that restarts would come back at the same moment. The doubling starts anew
    once a connection has outlived the time that was waited for it; after a shorter one that gave frames, at most
    :data:`LONGEST_ALIVE_S` are waited.
    """

    def __init__(self) -> None:
        self._attempts = 0
        self._opened: float | None = None

    def opened(self) -> None:
        """Note that the camera gave a frame after it had been opened."""
        self._opened = time.monotonic()

    def next_s(self) -> float:
        """Seconds to wait before the next attempt."""
        if self._opened is not None:
            outlived = time.monotonic() - self._opened > self._longest()
            self._attempts = 0 if outlived else min(self._attempts, _ATTEMPTS_ALIVE)
        self._opened = None
        longest = self._longest()
        self._attempts += 1
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - it only spreads attempts

    def _longest(self) -> float:
        return min(LONGEST_S, FIRST_S * 2.0 ** min(self._attempts, 16))
