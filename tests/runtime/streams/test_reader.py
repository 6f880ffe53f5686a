"""The threads of a stream: batches, turns, what is dropped, errors, forks, the end."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.errors import EdgevisError, SourceError
from runtime.streams.feed import StreamSettings, StreamState, ThreadFeed
from runtime.streams.reader import StreamReader
from runtime.streams.reconnect import FIRST_S, LONGEST_ALIVE_S, LONGEST_S, Backoff
from runtime.streams.sources import SourceSpec

from python_processes import run_python, succeeded
from stream_threads import threads

IMAGE = np.full((8, 8, 3), 7, np.uint8)


def test_a_folder_in_full_lists(door: Path) -> None:
    with StreamReader(door, batch=4) as reader:
        lists = list(reader)
    assert [[int(frame.image[0, 0, 0]) for frame in frames] for frames in lists] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [frame.index for frames in lists for frame in frames] == list(range(10))
    assert threads() == []


def test_several_sources_take_turns(door: Path) -> None:
    def camera() -> Iterator[Any]:
        yield from [IMAGE] * 3

    with StreamReader([door, camera(), [IMAGE] * 5], batch=3) as reader:
        frames = [frame for frames in reader for frame in frames]
        stats = reader.stats
    assert [entry.frames for entry in stats] == [10, 3, 5]
    assert [entry.source for entry in stats] == [str(door), "generator", "list"]
    for source, count in enumerate((10, 3, 5)):
        assert [frame.index for frame in frames if frame.source == source] == list(range(count))
    assert [frame.source for frame in frames[:9]] == [0, 1, 2] * 3


def test_an_iterable_is_read_by_the_thread_that_iterates() -> None:
    seen: list[int] = []

    def camera() -> Iterator[Any]:
        while True:
            seen.append(threading.get_ident())
            yield IMAGE

    reader = StreamReader(camera())
    for _ in range(3):
        next(reader)
    assert seen == [threading.get_ident()] * 3
    reader.close()
    with pytest.raises(StopIteration):
        next(reader)


def test_an_error_of_the_program_that_makes_the_frames_is_its_own() -> None:
    def camera() -> Iterator[Any]:
        yield IMAGE
        raise RuntimeError("mine")

    reader = StreamReader(camera())
    next(reader)
    with pytest.raises(RuntimeError, match="mine"):
        next(reader)


def test_errors_are_reported_or_raised(door: Path, tmp_path: Path) -> None:
    (door / "5.png").write_bytes(b"broken")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with StreamReader(door) as reader, pytest.raises(SourceError, match=r"5\.png is not an image"):
        list(reader)
    errors: list[EdgevisError] = []
    with StreamReader([door, tmp_path / "broken.mp4", [IMAGE, None]], on_error=errors.append) as reader:
        frames = [frame for frames in reader for frame in frames]
    assert [sum(frame.source == source for frame in frames) for source in range(3)] == [9, 0, 1]
    assert sorted(str(error).split(" is ")[0].split(" cannot ")[0] for error in errors) == sorted(
        [str(door / "5.png"), str(tmp_path / "broken.mp4"), "frame 1"]
    )


@pytest.mark.parametrize(("drop", "numbers", "dropped"), [("oldest", [8, 9], 8), ("none", list(range(10)), 0)])
def test_what_is_dropped_when_nobody_takes_it(door: Path, drop: Any, numbers: list[int], dropped: int) -> None:
    state = StreamState()
    paths = sorted(door.iterdir())
    feed = ThreadFeed(SourceSpec("images", "door", paths), 0, StreamSettings(drop, True, 10.0, 2, False), state)
    feed.thread.start()
    if drop == "oldest":
        feed.thread.join()
    taken = []
    while feed.finished() is False:
        with state.changed:
            item = feed.take()
        taken += [] if item is None else [item.index]
    assert (taken, feed.counters.dropped) == (numbers, dropped)


def test_latency_is_counted_until_the_frame_has_been_used(door: Path) -> None:
    with StreamReader(door) as reader:
        for _ in reader:
            time.sleep(0.01)
        (stats,) = reader.stats
    assert 10 <= stats.latency_p50_ms <= stats.latency_p99_ms
    assert np.isnan(StreamReader([IMAGE]).stats[0].latency_p50_ms)


def test_a_stream_that_is_forgotten_ends_its_threads(door: Path) -> None:
    reader = StreamReader(door)
    next(reader)
    gone = weakref.ref(reader)
    del reader
    gc.collect()
    assert gone() is None
    assert threads() == []


_FORK = """
import os, sys, numpy as np
from pathlib import Path
from runtime.errors import SourceError
from runtime.streams.reader import StreamReader
reader, fresh = StreamReader(sys.argv[1]), StreamReader(sys.argv[1])
next(reader)
if (child := os.fork()) == 0:
    try:
        next(reader)
    except SourceError as error:
        assert "opened by another process" in str(error)
        assert sum(len(frames) for frames in fresh) == 10
        reader.close()
        sys.exit(7)
    sys.exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sum(len(frames) for frames in reader))
"""


def test_a_fork_leaves_the_stream_to_the_parent(door: Path) -> None:
    """The child may open streams of its own, and it ends."""
    assert succeeded(run_python(_FORK, door)) == "7 9"


def test_waiting_times_double_and_vary() -> None:
    backoff = Backoff()
    waits = [backoff.next_s() for _ in range(12)]
    for attempt, wait in enumerate(waits):
        longest = min(LONGEST_S, FIRST_S * 2**attempt)
        assert longest / 2 <= wait <= longest
    assert len({Backoff().next_s() for _ in range(20)}) > 10
    backoff.opened()  # but it is lost again at once
    assert LONGEST_ALIVE_S / 2 <= backoff.next_s() <= LONGEST_ALIVE_S


def test_memory_of_a_long_stream_is_bounded() -> None:
    def camera() -> Iterator[Any]:
        for _ in range(3000):
            yield IMAGE

    with StreamReader(camera()) as reader:
        for _ in reader:
            pass
        counters = reader._feeds[0].counters
    assert counters.frames == 3000
    assert len(counters._times) == len(counters._latencies) == 1024
