"""Warnings in the log "edgevis": expected ones are checked, others fail the test, as Python's warnings do."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

# What a checkpoint's heads and averaged weights became, and what a cache cannot keep, is said where nothing is wrong.
_NOTES = frozenset(("edgevis.weights", "edgevis.device_build", "edgevis.telemetry"))


class Watch(logging.Handler):
    """Keeps the messages of warnings and errors that the log "edgevis" and the logs below it are given.

    Attributes:
        messages: Those that no :func:`logged_warnings` has taken, in order.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in _NOTES:
            self.messages.append(record.getMessage())


WATCH = Watch()


@contextmanager
def logged_warnings(match: str = "") -> Iterator[list[str]]:
    """Expect a warning whose text has a match of this regular expression; gives the list of all that come meanwhile."""
    before = len(WATCH.messages)
    texts: list[str] = []
    try:
        yield texts
    finally:
        texts += WATCH.messages[before:]
        del WATCH.messages[before:]
    assert any(re.search(match, text) for text in texts), f"no warning matches {match!r}: {texts}"


@contextmanager
def ignored_warnings(match: str) -> Iterator[None]:
    """Take warnings whose text has a match of this regular expression, if any come."""
    before = len(WATCH.messages)
    try:
        yield
    finally:
        WATCH.messages[before:] = [text for text in WATCH.messages[before:] if not re.search(match, text)]
