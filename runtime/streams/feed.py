"""One source of a stream: the thread that reads it, and the frames that wait to be taken."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from runtime.common import forking
from runtime.errors import EdgevisError, InputError, SourceError
from runtime.images.decode import as_image, read_image
from runtime.streams.capture import NEEDS_RANGES, Capture, Reading
from runtime.streams.frame import Frame
from runtime.streams.reconnect import Backoff
from runtime.streams.remote import RemoteCapture
from runtime.streams.sources import SourceSpec
from runtime.streams.stats import SourceCounters
from runtime.streams.video_file import VideoFile

_log = logging.getLogger("edgevis.streams")

REOPEN_S = 10.0
"""The least time that a camera has to come back: its loss has been noticed, a short limit would only keep it away."""

Item: TypeAlias = Frame | EdgevisError
"""A frame, or the error of an image that is skipped."""

Drop: TypeAlias = Literal["auto", "none", "oldest"]


@dataclass(frozen=True)
class StreamSettings:
    """How sources are read; see :class:`runtime.streams.reader.StreamReader`."""

    drop: Drop
    reconnect: bool
    timeout_s: float
    batch: int
    skip_errors: bool


class StreamState:
    """What the threads of one stream share: the lock, whether they are to end, and which sources have begun.

    Attributes:
        beginning: The positions of the sources that have neither given a frame yet nor failed to.
        giving: Those of the sources that have given one and have not ended.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        self.pid: int | None = None  # of the process whose threads read, once they do
        self.beginning: set[int] = set()
        self.giving: set[int] = set()
        forking.register(self)

    def note(self, position: int, *, gives: bool) -> None:
        """Note that a source gives frames, or that it has failed or ended."""
        with self.changed:
            self.beginning.discard(position)
            (self.giving.add if gives else self.giving.discard)(position)
            self.changed.notify_all()

    def others_give(self, position: int) -> bool:
        """Whether another source gives frames, for one that has failed to begin; waits until that is decided."""
        self.note(position, gives=False)
        with self.changed:
            self.changed.wait_for(lambda: self.giving or not self.beginning or self.stopping.is_set())
            return bool(self.giving)

    def after_fork(self) -> None:
        """In a forked child: the threads are gone, and the lock may be held by one of them."""
        self.changed = threading.Condition()
        self.stopping = threading.Event()
        if self.pid is not None:
            self.stopping.set()


class Feed(Protocol):
    """A source that frames are taken from, by the thread that iterates."""

    counters: SourceCounters
    live: bool

    def take(self) -> Item | None:
        """The oldest waiting frame; None if none waits."""
        ...

    def finished(self) -> EdgevisError | BaseException | bool:
        """False while frames may come; afterwards True, or the error that ended the source."""
        ...


class IterableFeed:
    """Images of an iterable, taken from it when they are asked for and by the thread that asks."""

    live = False

    def __init__(self, spec: SourceSpec, position: int, settings: StreamSettings, state: StreamState) -> None:
        self._items = enumerate(spec.target)
        self._position, self._skip, self._state = position, settings.skip_errors, state
        state.giving.add(position)  # its images are there
        self._count = 0
        self._end: BaseException | bool = False
        self.counters = SourceCounters(spec.name)
        self.counters.connected = True

    def take(self) -> Item | None:
        if self._end is not False:
            return None
        for number, value in self._items:
            try:
                image = as_image(value, f"frame {number}")
            except (InputError, SourceError) as error:
                if self._skip:
                    return error
                self._end = error
                self._state.note(self._position, gives=False)
                return None
            self._count += 1
            return Frame(image, self._position, self._count - 1, 0.0, time.monotonic())
        self._end = True
        self._state.note(self._position, gives=False)
        self.counters.connected = False
        return None

    def finished(self) -> BaseException | bool:
        return self._end


class ThreadFeed:
    """A source that a thread of its own reads into a short queue."""

    def __init__(self, spec: SourceSpec, position: int, settings: StreamSettings, state: StreamState) -> None:
        self.spec, self.settings, self.state = spec, settings, state
        self.counters = SourceCounters(spec.name)
        self.live = spec.kind in ("camera", "address")
        self._position = position
        self._waiting: deque[Item] = deque()
        self._index = 0
        self._end: BaseException | bool = False
        self._capture: Capture | None = None
        self._first_opened: float | None = None
        self._opened_late = False  # whether the first frame comes after a failure
        state.beginning.add(position)
        self.thread = threading.Thread(target=self._run, name=f"edgevis-stream-{position}", daemon=True)
        forking.register(self)

    @property
    def drops(self) -> bool:
        """Whether frames that wait are dropped when newer ones come."""
        return self.settings.drop == "oldest" or (self.settings.drop == "auto" and self.live)

    def after_fork(self) -> None:
        """In a forked child: a decoder must not be used or freed there, because its threads do not exist."""
        capture, self._capture = self._capture, None
        if isinstance(capture, RemoteCapture):
            capture.release()
        if capture is not None:
            forking.leak(capture)

    def take(self) -> Item | None:
        if not self._waiting:
            return None
        item = self._waiting.popleft()
        self.state.changed.notify_all()
        return item

    def finished(self) -> BaseException | bool:
        return False if self._waiting else self._end

    def _run(self) -> None:
        end: BaseException | bool = True
        try:
            self._read_images() if self.spec.kind == "images" else self._read_captures()
        except BaseException as error:  # raised by the thread that iterates
            end = error
        finally:
            self.state.note(self._position, gives=False)
            with self.state.changed:
                self._end = end
                self.counters.connected = False
                self.state.changed.notify_all()

    def _read_images(self) -> None:
        self.counters.connected = True
        for path in self.spec.target:
            item: Item
            try:
                with forking.fork_waits():
                    image = read_image(path)
                item = Frame(image, self._position, self._index, 0.0, time.monotonic())
                del image  # the queue alone holds it: photographs are large
                self.state.note(self._position, gives=True)
                self._index += 1
            except (InputError, SourceError) as error:
                if not self.settings.skip_errors:
                    raise
                item = error
            if not self._put(item):
                return
            del item

    def _read_captures(self) -> None:
        backoff = Backoff()
        while not self.state.stopping.is_set():
            reason = self._read_one_capture(backoff)
            if reason is None:
                return
            wait_s = backoff.next_s()
            self._opened_late = not self._index
            _log.warning("%s; trying again in %.1f s", reason, wait_s)
            self.state.stopping.wait(wait_s)

    def _read_one_capture(self, backoff: Backoff) -> str | None:
        """Read until the capture ends; returns why it is to be opened again, None if it is not."""
        try:
            for reading in self._readings():
                if reading.image is not None:
                    self._note_connected(backoff)
                if not self._put_reading(reading):
                    return None
        except SourceError as error:
            if not self._comes_back():
                raise
            return str(error)
        finally:
            self._close_capture()
        if self.state.stopping.is_set():
            return None
        if not self._index:
            corrupt = self.counters.corrupt
            problem = f"none of its {corrupt} frames could be decoded" if corrupt else "it gave no frame"
            hint = "" if corrupt or self.live else NEEDS_RANGES
            reason = f"{self.spec.name} was opened but {problem}{hint}"
            if not self._comes_back():
                raise SourceError(reason)
            return reason
        if not self.live:
            return None
        if not self.settings.reconnect:
            raise SourceError(f"{self.spec.name} was lost after {self._index} frames; reconnect=True opens it again")
        return f"{self.spec.name} was lost"

    def _comes_back(self) -> bool:
        """Whether to open the source again: one that has given frames, or one of several while another one gives some.

        An address that is wrong from the beginning is an error where it is all there is; of several cameras one may be
        switched on after the program.
        """
        if not (self.live and self.settings.reconnect):
            return False
        return bool(self._index) or self.state.others_give(self._position)

    def _readings(self) -> Iterator[Reading]:
        capture = self._open()
        self.live = capture.live
        while not self.state.stopping.is_set():
            if self.spec.kind == "video":
                with forking.fork_waits():
                    reading = capture.read()
            else:
                reading = capture.read()
            if reading is None:
                return
            yield reading

    def _open(self) -> Capture:
        if self.spec.kind == "video":
            with forking.fork_waits():
                self._capture = capture = VideoFile(self.spec.target)
            return capture
        timeout_s = self.settings.timeout_s
        remote = RemoteCapture(
            self.spec.target,
            self.spec.name,
            timeout_s=timeout_s,
            open_timeout_s=max(timeout_s, REOPEN_S) if self._index else timeout_s,
            stopping=self.state.stopping,
        )
        self._capture = remote  # already now: it is to be closed if it does not open
        remote.open()
        return remote

    def _close_capture(self) -> None:
        capture, self._capture = self._capture, None
        with self.state.changed:
            self.counters.connected = False
        if capture is not None:
            capture.close()

    def _note_connected(self, backoff: Backoff) -> None:
        """Count the first frame after an opening."""
        if self.counters.connected:
            return
        backoff.opened()
        self.state.note(self._position, gives=True)
        with self.state.changed:
            self.counters.connected = True
            if self._index:
                self.counters.reconnects += 1
        if self._index:
            _log.warning("%s gives frames again", self.spec.name)
        elif self._opened_late:
            _log.warning("%s gives frames now", self.spec.name)

    def _put_reading(self, reading: Reading) -> bool:
        if reading.corrupt:
            with self.state.changed:
                self.counters.corrupt += reading.corrupt
        if reading.image is None:
            return True
        if self._first_opened is None:
            self._first_opened = reading.captured
        time_s = reading.captured - self._first_opened if reading.time_s is None else reading.time_s
        frame = Frame(reading.image, self._position, self._index, time_s, reading.captured)
        self._index += 1
        return self._put(frame)

    def _put(self, item: Item) -> bool:
        """Let the item wait to be taken; False if the stream was closed."""
        with self.state.changed:
            if self.drops:
                while len(self._waiting) >= self.settings.batch:
                    self._waiting.popleft()
                    self.counters.dropped += 1
            else:
                room = 2 * self.settings.batch  # one list is taken while the next one is prepared
                self.state.changed.wait_for(lambda: len(self._waiting) < room or self.state.stopping.is_set())
            if self.state.stopping.is_set():
                return False
            self._waiting.append(item)
            self.state.changed.notify_all()
        return True
