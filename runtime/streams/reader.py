"""The frames of one source or several, read by threads while earlier frames are used."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from runtime.common.closing import Closing
from runtime.errors import EdgevisError, InputError, SourceError
from runtime.images.decode import Image
from runtime.streams.feed import Drop, Feed, IterableFeed, StreamSettings, StreamState, ThreadFeed
from runtime.streams.frame import Frame
from runtime.streams.sources import Source, source_specs
from runtime.streams.stats import SourceStats

OnError = Callable[[EdgevisError], object]

MAX_BATCH = 1024
MAX_TIMEOUT_S = 86400.0

_JOIN_S = 0.8
"""How long :meth:`StreamReader.close` waits for all threads together: with what else it does, less than a second."""


class StreamReader(Closing):
    """Reads one source or several: an iterator over lists of :class:`Frame`, at most ``batch`` in each.

    Cameras, addresses, video files and folders are read by threads, which start with the first frame that is asked for;
    an iterable is read by the thread that iterates, one image at a time. Frames of several sources come in turns. Where
    a source is live, a list holds what waits and no source waits for another; where none is, the turns are always the
    same, and every list but the last is full.

    Args:
        sources: A camera's index, the path of a video, of an image or of a folder of images (those in its folders, too,
            in order of their paths; see :mod:`runtime.images.folders`), an address such as ``rtsp://…``, an iterable of
            images, or a list of such sources; see :func:`runtime.streams.sources.source_specs`.
        drop: ``"oldest"`` keeps the newest frames of a source, at most ``batch``, and drops the older ones: what is
            handed out is never older than one round of use. ``"none"`` drops nothing: the source waits, and a camera
            falls behind. ``"auto"`` is ``"oldest"`` for cameras and live addresses, else ``"none"``.
        reconnect: Whether a camera or live address that was lost is opened again, until it comes back or the stream is
            closed. One that cannot be opened at the beginning raises, or is tried again while another source gives
            frames.
        timeout_s: Seconds, 0.1..86400, without a frame after which a camera or address counts as lost; also those until
            its first frame. One that is opened again has at least 10 s for that.
        batch: The largest number of frames in a list, 1..1024.
        on_error: Called, by the thread that iterates, with the error of an image of a folder or an iterable that cannot
            be read, and with that of a source that ends by an error; the others go on. None raises it.

    Raises:
        InputError: An argument is not allowed, or nothing that frames can come from.
        SourceError: There is no such source; while iterating, it cannot be opened or read.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        *,
        drop: Drop = "auto",
        reconnect: bool = True,
        timeout_s: float = 10.0,
        batch: int = 1,
        on_error: OnError | None = None,
    ) -> None:
        _check_settings(drop, timeout_s, batch)
        settings = StreamSettings(drop, bool(reconnect), float(timeout_s), int(batch), on_error is not None)
        specs, self.single = source_specs(sources)
        self._batch, self._on_error = settings.batch, on_error
        self._state = StreamState()
        self._feeds: list[Feed] = [
            IterableFeed(spec, position, settings, self._state)
            if spec.kind == "iterable"
            else ThreadFeed(spec, position, settings, self._state)
            for position, spec in enumerate(specs)
        ]
        self._turn: deque[Feed] = deque(self._feeds)
        self._coming: list[Frame] = []  # the next list, as far as it has been taken
        self._complete = False  # whether that is all of it
        self._held: Exception | None = None  # met by looking ahead, to be raised or reported in its turn
        self._in_use: list[Frame] = []
        threads = [feed for feed in self._feeds if isinstance(feed, ThreadFeed)]
        # Also when nothing refers to the reader any more, and when the interpreter exits.
        self._stop = weakref.finalize(self, _stop, self._state, threads)

    def __iter__(self) -> Iterator[list[Frame]]:
        return self

    def __next__(self) -> list[Frame]:
        self._check_process()
        self._note_used()
        try:
            self._start()
            if not self._complete:
                self._collect(wait=True)
        except BaseException:  # Ctrl-C, too
            self.close()
            raise
        frames, self._coming, self._complete = self._coming, [], False
        if not frames:
            self.close()
            raise StopIteration
        with self._state.changed:
            for frame in frames:
                self._feeds[frame.source].counters.handed_out()
        self._in_use = frames
        return list(frames)

    def look_ahead(self) -> list[Frame] | None:
        """The list that ``next`` will give; None if it is not there without waiting, or has an image of an iterable.

        Nothing is raised, reported or counted before ``next`` is called.
        """
        if not self._complete and self._held is None and self._state.pid is not None:
            try:
                self._complete = self._collect(wait=False)
            except Exception as error:
                self._held = error
        return list(self._coming) if self._complete and self._coming else None

    @property
    def stats(self) -> tuple[SourceStats, ...]:
        """The counts, rates and latencies of each source, in the order of the sources."""
        with self._state.changed:
            return tuple(feed.counters.stats() for feed in self._feeds)

    @property
    def live(self) -> bool:
        """Whether a source is a camera or a live address; of an address it is known once it is open."""
        return any(feed.live for feed in self._feeds)

    @property
    def drops(self) -> bool:
        """Whether frames of a source are dropped when newer ones come; of an address it is known once it is open."""
        return any(feed.drops for feed in self._feeds if isinstance(feed, ThreadFeed))

    def close(self) -> None:
        """End every thread within a second; closing twice does no harm."""
        self._note_used()
        self._coming, self._complete, self._held = [], False, None
        self._stop()

    def _start(self) -> None:
        if self._state.pid is not None or self._state.stopping.is_set():
            return
        self._state.pid = os.getpid()
        for feed in self._feeds:
            if isinstance(feed, ThreadFeed):
                feed.thread.start()

    def _check_process(self) -> None:
        if self._state.pid not in (None, os.getpid()):
            raise SourceError("this stream was opened by another process, before a fork; open it again in this one")

    def _note_used(self) -> None:
        frames, self._in_use = self._in_use, []
        if frames:
            with self._state.changed:
                for frame in frames:
                    self._feeds[frame.source].counters.used(frame.captured)

    def _collect(self, *, wait: bool) -> bool:
        """Take frames until the next list is complete; False where one has to wait for more, or to report an error."""
        if self._held is not None:
            held, self._held = self._held, None
            self._report(held)
        if not wait and any(isinstance(feed, IterableFeed) for feed in self._turn):
            return False
        while len(self._coming) < self._batch:
            live = any(feed.live for feed in self._feeds)
            item = self._take(wait=wait and not (self._coming and live))
            if isinstance(item, Frame):
                self._coming.append(item)
            elif item is None:
                return not self._turn or bool(self._coming and live)
            elif wait:
                self._report(item)
            else:
                self._held = item
                return False
        return True

    def _report(self, error: Exception) -> None:
        if self._on_error is None or not isinstance(error, EdgevisError):
            raise error
        self._on_error(error)

    def _take(self, *, wait: bool) -> Frame | EdgevisError | None:
        """The next frame of the sources in turn, or an error to report; None at the end, or if none waits."""
        with self._state.changed:
            while not self._state.stopping.is_set():
                in_order = not any(feed.live for feed in self._turn)  # else no camera waits for another
                for feed in tuple(self._turn):
                    item = feed.take()
                    end = feed.finished() if item is None else False
                    if end is not False:
                        self._turn.remove(feed)
                        if isinstance(end, EdgevisError):
                            return end
                        if isinstance(end, BaseException):
                            raise end
                    if item is not None:
                        self._turn.rotate(-1 - self._turn.index(feed))
                        return item
                    if end is False and in_order:
                        break
                if not self._turn or not wait:
                    return None
                self._state.changed.wait()
        return None


def _check_settings(drop: object, timeout_s: Any, batch: Any) -> None:
    if drop not in ("auto", "none", "oldest"):
        raise InputError(f"drop is {drop!r}; allowed: 'auto', 'none' or 'oldest'")
    number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool) and math.isfinite(timeout_s)
    if not number or not 0.1 <= timeout_s <= MAX_TIMEOUT_S:
        raise InputError(f"timeout_s is {timeout_s!r}; allowed: 0.1 to {MAX_TIMEOUT_S:g} seconds")
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MAX_BATCH:
        raise InputError(f"batch is {batch!r}; allowed: an int from 1 to {MAX_BATCH}")


def _stop(state: StreamState, feeds: Sequence[ThreadFeed]) -> None:
    """End the threads; in a forked child, whose parent they belong to, do nothing."""
    if state.pid not in (None, os.getpid()):
        return
    state.stopping.set()
    with state.changed:
        state.changed.notify_all()
    deadline = time.monotonic() + _JOIN_S
    for feed in feeds:
        if feed.thread.is_alive():
            feed.thread.join(max(0.0, deadline - time.monotonic()))


def frames(
    source: Source | Sequence[Source], *, on_error: OnError | None = None, live_s: float | None = None
) -> Iterator[Image]:
    """The images of a :class:`StreamReader` with the default settings, one after another.

    Args:
        source, on_error: As there.
        live_s: Seconds after which the images of a live source end; None lets them go on.

    Raises:
        InputError: Nothing that frames can come from.
        SourceError: There is no such source; while iterating, it cannot be opened or read.
    """
    return _images(StreamReader(source, on_error=on_error), live_s)


def _images(reader: StreamReader, live_s: float | None) -> Iterator[Image]:
    first: float | None = None
    with reader:
        for batch in reader:
            first = batch[0].captured if first is None else first
            if live_s is not None and reader.live and batch[0].captured - first > live_s:
                return
            for frame in batch:
                yield frame.image
