"""Run jobs on all cores, on threads that end with the work: a pool's threads would be lost in a forked process."""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable, Sequence
from queue import SimpleQueue


def run_all(jobs: Sequence[Callable[[], None]], *, threads: int) -> None:
    """Run all jobs on this thread and up to ``threads - 1`` others; re-raises an exception of a job."""
    waiting = iter(jobs)
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        for job in waiting:
            try:
                job()
            except BaseException as error:
                ended.put(error)
            else:
                ended.put(None)

    # Not threading.Thread, whose start() waits until the thread runs: on a busy machine this one has done the work
    # by then. A helper that comes too late finds no job left.
    for _ in range(min(threads, len(jobs)) - 1):
        _thread.start_new_thread(work, ())
    work()
    problems = [error for error in (ended.get() for _ in jobs) if error is not None]
    if problems:
        raise problems[0]


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
