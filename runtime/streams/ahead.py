"""Work on the next frames of a stream while the present ones are used."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from runtime.common.closing import Closing
from runtime.common.forking import fork_waits, register
from runtime.streams.frame import Frame
from runtime.streams.reader import StreamReader

T = TypeVar("T")

Begin = Callable[[list[Frame]], Callable[[], T]]
"""Given the next frames by the thread that iterates, in order; returns the work on them, which any thread may do."""


class AheadReader(Closing, Generic[T]):
    """A reader's lists of frames, each with the result of the work on it: an iterator over pairs.

    One thread works on the next list while the program uses the present one, if that list is there already: at most one
    list is ahead. Otherwise the thread that iterates does the work, as it does for images of an iterable, which are not
    asked for before their turn. An error of the reader or of the work is raised by the call that asks for its frames.

    A source that drops frames is looked ahead of only while that costs no latency: as long as the program needs less
    time for a list than the work on it takes.

    Args:
        reader: The frames; closed with this iterator.
        begin: See :data:`Begin`. The work must not depend on what the program does with earlier results.
    """

    def __init__(self, reader: StreamReader, begin: Begin[T]) -> None:
        self._reader, self._begin = reader, begin
        self._reset_locks()
        self._closed = False
        self._executor: ThreadPoolExecutor | None = None
        self._pending: Future[tuple[T, float]] | None = None
        self._handed_out = -math.inf
        self._work_s = 0.0
        register(self)

    def __iter__(self) -> Iterator[tuple[list[Frame], T]]:
        return self

    def __next__(self) -> tuple[list[Frame], T]:
        use_s = time.monotonic() - self._handed_out
        try:
            frames = next(self._reader)
            pending, self._pending = self._pending, None
            result, self._work_s = self._work(frames) if pending is None else pending.result()
            if use_s <= self._work_s or not self._reader.drops:
                self._look_ahead()
        except CancelledError:  # closed by another thread
            raise StopIteration from None
        except BaseException:  # Ctrl-C, too
            self.close()
            raise
        self._handed_out = time.monotonic()
        return frames, result

    def close(self) -> None:
        """End the stream and every thread of it; no work is done any more when this returns.

        Closing twice does no harm.
        """
        self._reader.close()
        with self._changing:
            self._closed = True
            executor = self._executor
        if executor is not None:
            executor.shutdown(wait=True, cancel_futures=True)
        with self._working:
            pass

    def after_fork(self) -> None:
        """In a forked child, which has no such thread: drop what belongs to it, and the locks that it may hold."""
        self._executor = self._pending = None
        self._reset_locks()

    def _reset_locks(self) -> None:
        self._changing = threading.RLock()  # held while work is given to the thread
        self._working = threading.RLock()  # held by work that is done without it

    def _work(self, frames: list[Frame]) -> tuple[T, float]:
        with self._working:
            if self._closed:
                raise CancelledError
            return _timed(self._begin(frames))

    def _look_ahead(self) -> None:
        frames = self._reader.look_ahead()
        if frames is None:
            return
        work = self._begin(frames)
        with self._changing:
            if self._closed:
                return
            if self._executor is None:
                # Its thread ends with it, and an exit of the interpreter waits for the work that has begun.
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="edgevis-stream-ahead")
            self._pending = self._executor.submit(_timed, work)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """The result of the work, and the seconds that it took; a fork waits for its end."""
    started = time.monotonic()
    with fork_waits():
        result = work()
    return result, time.monotonic() - started
