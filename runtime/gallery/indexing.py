"""The thread that builds a gallery's index, and rebuilds it when the gallery has outgrown it."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from typing import Protocol

from runtime.gallery.index import IndexInfo, RowIndex, StoppedError, measured
from runtime.gallery.state import GalleryState

_GROWN = 4  # the index is extended when a fourth as many rows are new
_REMOVED = 16  # and made anew when a sixteenth of its rows were removed: what was forgotten is in it until then


class HasState(Protocol):
    """The protocol of a gallery's store."""

    state: GalleryState


class Indexing:
    """Maintains an index of the owner's rows, from ``index_from`` rows on, as long as the owner lives.

    Attributes:
        index: The index to search through; None while there is none, or none that pays.
        info: The measurement of the last index.
    """

    def __init__(self, owner: HasState, index_from: int) -> None:
        self._owner = weakref.ref(owner)
        self._index_from = index_from
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._latest: RowIndex | None = None
        self.index: RowIndex | None = None
        self.info: IndexInfo | None = None
        _running.add(self)

    def follow(self) -> None:
        """Start the thread if the index no longer fits what is enrolled; call it after each change."""
        if self._stopped or self._begins() is None:
            return
        with self._starting:
            # After a fork the child has no such thread, whatever the parent was doing.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="edgevis-index", daemon=True)
                self._thread.start()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the index covers the rows that were enrolled at the call."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def stop(self) -> None:
        """End the thread; no index is built or used any more."""
        self._stopped = True
        self.wait()
        self.index = self._latest = None

    def _begins(self) -> tuple[GalleryState, RowIndex | None] | None:
        """The state to index now and the index to extend; None while the present index fits."""
        owner, latest = self._owner(), self._latest
        if owner is None or owner.state.row_count < self._index_from:
            return None
        state = owner.state
        if latest is None:
            return state, None
        newer = state.behind(latest.upto)
        new = len(newer) - len(newer.removed)
        removed = latest.rows - (state.row_count - new)
        if removed * _REMOVED > latest.rows:
            return state, None
        return (state, latest) if new * _GROWN > latest.rows else None

    def _run(self) -> None:
        while not self._stopped:
            begins = self._begins()
            if begins is None:
                return
            state, before = begins
            start = time.perf_counter()
            try:
                index = RowIndex.of(state, before, self._goes_on)
                info = measured(index, state, time.perf_counter() - start, self._goes_on)
            except StoppedError:
                return
            self._latest, self.info, self.index = index, info, index if info.used else None

    def _goes_on(self) -> bool:
        return not self._stopped and self._owner() is not None


_running: weakref.WeakSet[Indexing] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for indexing in list(_running):
        indexing.stop()
