"""A queue between a stream and a network: the stream never waits, and a receiver that is away is tried again."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

_log = logging.getLogger("edgevis.events")

MAX_WAITING = 1000
"""Events that wait; of more, the oldest are dropped and counted."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class Outbox:
    """An event sink that delivers in order, by a thread of its own.

    Attributes:
        sent: The number of events that were delivered.
        dropped: The number of events that never will be.

    Args:
        name: The receiver's name for messages, without a password.
        deliver: Sends one event; raises OSError where it should be tried again, and returns once it was accepted. By
            any other exception the event is dropped and reported; the next ones are tried.
    """

    def __init__(self, name: str, deliver: Callable[[Mapping[str, Any]], None]) -> None:
        self._name, self._deliver = name, deliver
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._stopped = threading.Event()
        self.sent = self.dropped = 0
        self._thread = threading.Thread(target=self._run, name=f"events to {name}", daemon=True)
        self._thread.start()

    def send(self, event: Mapping[str, Any]) -> None:
        """Add an event; at :data:`MAX_WAITING` the oldest one goes."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self.dropped += 1
                if self.dropped == 1:
                    _log.warning("%s takes no events: the oldest are dropped", self._name)
            self._waiting.append(event)
            self._changed.notify()

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Wait until all events were delivered, at most ``timeout_s`` seconds; what is left then is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self._stopped.set()
            left = len(self._waiting)
            self._waiting.clear()
            self.dropped += left
            self._changed.notify()
        if left:
            _log.warning("%s did not take the last %d events", self._name, left)

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing or self._stopped.is_set())
                if self._stopped.is_set() or not self._waiting:
                    return
                event = self._waiting[0]
            try:
                self._deliver(event)
            except OSError as error:
                if self._stopped.is_set():
                    return
                _log.warning("%s did not take an event, it is tried again: %s", self._name, error)
                self._pause(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            except Exception as error:  # else this thread, and with it all later events, would end unseen
                _log.error("%s cannot be given an event, which is dropped: %r", self._name, error)
                delivered = False
            else:
                delivered = True
            pause_s = _FIRST_PAUSE_S
            with self._changed:
                self.sent += delivered
                if self._waiting and self._waiting[0] is event:
                    self._waiting.popleft()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(self._stopped.is_set, timeout=until - time.monotonic())
