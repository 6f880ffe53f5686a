"""The thread that works on the next frames of a stream while the present ones are used."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import EdgevisError, InputError, SourceError
from runtime.streams.ahead import AheadReader
from runtime.streams.feed import ThreadFeed
from runtime.streams.reader import StreamReader
from runtime.streams.results import ResultStream

from python_processes import run_python, succeeded
from stream_threads import threads

AHEAD = "edgevis-stream-ahead"


def wait(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened for ten seconds")


class Watched:
    """The numbers of the pictures by list, with the thread that worked on each list."""

    def __init__(self, source: Any, *, fails_at: int | None = None, **options: Any) -> None:
        self.fails_at = fails_at
        self.reader = StreamReader(source, **options)
        self.workers: list[str] = []
        self.started: list[list[int]] = []
        self.ahead = AheadReader(self.reader, self._begin)

    def _begin(self, frames: list[Any]) -> Callable[[], list[int]]:
        numbers = [int(frame.image[0, 0, 0]) for frame in frames]
        self.started.append(numbers)

        def work() -> list[int]:
            self.workers.append(threading.current_thread().name)
            return [1 // 0] if self.fails_at in numbers else numbers

        return work

    def use(self, seen: list[int]) -> None:
        """Use the whole stream, with the reading threads always ahead; ``seen`` gets the numbers."""
        for _, numbers in self.ahead:
            seen += numbers
            self.filled()

    def filled(self) -> None:
        """Wait until its reading threads have read as far as they may."""
        feeds = [feed for feed in self.reader._feeds if isinstance(feed, ThreadFeed)]
        room = 2 * self.reader._batch
        wait(lambda: all(len(feed._waiting) >= room or feed._end is not False for feed in feeds))


@pytest.mark.parametrize("batch", [1, 3])
def test_the_next_list_is_worked_on_by_a_thread_and_the_order_stays(door: Path, batch: int) -> None:
    stream = Watched(door, batch=batch)
    with stream.ahead as ahead:
        results = []
        for frames, numbers in ahead:
            assert [int(frame.image[0, 0, 0]) for frame in frames] == numbers
            results += numbers
            assert stream.reader.stats[0].frames == len(results)  # what is ahead does not count
            stream.filled()
    assert results == list(range(10))
    assert [len(numbers) for numbers in stream.started] == [batch] * (10 // batch) + [1] * (batch == 3)
    # Of the first list nothing was ahead, nor of the second, which one had to wait for.
    assert all(name.startswith(AHEAD) for name in stream.workers[2:])
    assert threads() == []


def test_at_most_one_list_is_ahead(door: Path) -> None:
    stream = Watched(door)
    for _ in range(3):
        next(stream.ahead)
        stream.filled()
    assert stream.started[-1][0] <= 3  # of the fourth picture, not of those that wait
    stream.ahead.close()
    assert stream.reader.stats[0].frames == 3
    with pytest.raises(StopIteration):
        next(stream.ahead)
    assert threads() == []


def test_an_iterable_is_not_asked_before_its_turn() -> None:
    asked = []

    def camera() -> Iterator[Any]:
        for number in range(4):
            asked.append((number, threading.get_ident()))
            yield np.full((8, 8, 3), number, np.uint8)

    stream = Watched(camera())
    for number, (_, numbers) in enumerate(stream.ahead):
        assert numbers == [number]
        assert asked == [(index, threading.get_ident()) for index in range(number + 1)]
    assert set(stream.workers) == {threading.current_thread().name}


def test_errors_come_in_their_turn_and_to_the_program(door: Path) -> None:
    (door / "5.png").write_bytes(b"broken")
    stream = Watched(door)
    seen: list[int] = []
    with pytest.raises(SourceError, match=r"5\.png is not an image"):
        stream.use(seen)
    assert seen == [0, 1, 2, 3, 4]
    reported: list[tuple[int, int]] = []

    def on_error(error: EdgevisError) -> None:
        reported.append((len(seen), threading.get_ident()))

    seen.clear()
    stream = Watched(door, on_error=on_error)
    stream.use(seen)
    assert seen == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert reported == [(5, threading.get_ident())]
    assert threads() == []


def test_an_error_of_the_work_comes_in_its_turn(door: Path) -> None:
    stream = Watched(door, fails_at=4)
    seen: list[int] = []
    with pytest.raises(ZeroDivisionError):
        stream.use(seen)
    assert seen == [0, 1, 2, 3]
    assert threads() == []


def test_results_are_paired_with_their_frames(door: Path) -> None:
    sizes: list[int] = []

    def predict(numbers: Any) -> list[int]:
        sizes.append(len(numbers))
        return list(numbers)

    def prepare(images: list[Any]) -> Any:
        return [int(image[0, 0, 0]) for image in images]

    with ResultStream(StreamReader(door, batch=4), prepare=prepare, predict=predict) as results:
        assert [(int(image[0, 0, 0]), result) for image, result in results] == [(i, i) for i in range(10)]
    assert sizes == [4, 4, 2]
    with ResultStream(StreamReader([door, door]), prepare=prepare, predict=predict) as results:
        pairs = list(results)
    assert sorted((frame.source, frame.index) for frame, _ in pairs) == [(s, i) for s in (0, 1) for i in range(10)]
    assert all(int(frame.image[0, 0, 0]) == result for frame, result in pairs)

    def fail(images: Any) -> list[int]:
        raise InputError("no")

    for faulty in ({"prepare": fail, "predict": predict}, {"prepare": prepare, "predict": fail}):
        with pytest.raises(InputError, match="no"):
            next(ResultStream(StreamReader(door), **faulty))
    assert threads() == []


def test_a_source_that_drops_frames_is_not_looked_ahead_of_at_the_cost_of_latency(door: Path) -> None:
    """Work of no time before a program that takes longer: what waits must be the newest when it is asked for."""
    stream = Watched(door, drop="oldest")
    for _ in stream.ahead:
        time.sleep(0.005)
    assert set(stream.workers) == {threading.current_thread().name}
    assert stream.started[-1] == [9]
    assert sum(entry.frames + entry.dropped for entry in stream.reader.stats) == 10


def test_a_source_that_drops_frames_is_looked_ahead_of_when_the_work_takes_longest(door: Path) -> None:
    workers = []

    def begin(frames: list[Any]) -> Callable[[], None]:
        def work() -> None:
            workers.append(threading.current_thread().name)
            time.sleep(0.05)

        return work

    reader = StreamReader([door] * 4, drop="oldest")  # when one was taken, the others have something to give
    with AheadReader(reader, begin) as ahead:
        for _ in ahead:
            pass
    assert any(name.startswith(AHEAD) for name in workers)


def test_close_from_another_thread_ends_the_stream(door: Path) -> None:
    stream = Watched(door)
    busy, released = threading.Event(), threading.Event()

    def begin(frames: list[Any]) -> Callable[[], None]:
        def work() -> None:
            busy.set()
            released.wait(10)

        return work

    ahead = AheadReader(stream.reader, begin)
    closing = threading.Thread(target=ahead.close)
    seen: list[object] = []
    using = threading.Thread(target=lambda: seen.extend(ahead))
    using.start()
    assert busy.wait(10)
    closing.start()
    released.set()
    using.join(10)
    closing.join(10)
    assert not using.is_alive()
    assert not closing.is_alive()
    assert len(seen) <= 1
    assert threads() == []


def test_a_stream_that_is_forgotten_ends_its_threads(door: Path) -> None:
    stream = Watched(door)
    for _ in range(3):
        next(stream.ahead)
        stream.filled()
    gone = weakref.ref(stream.ahead)
    del stream
    gc.collect()
    assert gone() is None
    wait(lambda: threads() == [])


_FORK = """
import os, sys, threading, time
from runtime.errors import SourceError
from runtime.streams.ahead import AheadReader
from runtime.streams.reader import StreamReader
busy, pause_s = [], [0.2]
def begin(frames):
    def work():
        busy.append(1)
        started.set()
        time.sleep(pause_s[0])
        busy.pop()
        return len(frames)
    return work
started = threading.Event()
ahead, fresh = AheadReader(StreamReader(sys.argv[1]), begin), AheadReader(StreamReader(sys.argv[1]), begin)
for _ in range(2):
    next(ahead)
    time.sleep(0.1)
started.clear()
next(ahead)  # the next work goes on
if not started.wait(10):
    sys.exit("nothing is ahead")
child = os.fork()
pause_s[0] = 0.0
if child == 0:
    if busy:  # the fork did not wait for the work
        sys.exit(1)
    try:
        next(ahead)
    except SourceError as error:
        assert "opened by another process" in str(error)
        assert sum(count for _, count in fresh) == 10
        ahead.close()
        sys.exit(7)
    sys.exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sum(count for _, count in ahead))
"""


def test_a_fork_waits_for_the_work_and_leaves_the_stream_to_the_parent(door: Path) -> None:
    """The child may open streams of its own, and it ends."""
    assert succeeded(run_python(_FORK, door)) == "7 7"


_INTERRUPTED = """
import signal, sys, threading, time
from runtime.streams.ahead import AheadReader
from runtime.streams.reader import StreamReader
def begin(frames):
    return lambda: time.sleep(0.3 if threading.current_thread() is not threading.main_thread() else 0)
ahead = AheadReader(StreamReader(sys.argv[1]), begin)
threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT)).start()
try:
    for _ in range(9):
        next(ahead)
        time.sleep(0.05)
    sys.exit("it was not interrupted")
except KeyboardInterrupt:
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("edgevis-stream")]
    if left == []:
        print("ended")
    ahead.close()
"""


def test_ctrl_c_ends_the_threads(door: Path) -> None:
    assert succeeded(run_python(_INTERRUPTED, door)) == "ended"
