"""The handling of engines and locks that a forked child inherits.

``fork`` copies the memory of a process but only the one thread that called it. In the child an engine waits for worker
threads that do not exist, whether it runs or is destroyed, and a lock that another thread held stays locked for ever.
So a fork waits until no predictor is at work, which leaves its locks free, and the child never touches an engine of its
parent again, not even to destroy it. Python calls the functions at the end of this file at every ``os.fork``: also
at those of ``multiprocessing`` and of gunicorn.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

_PATIENCE_SECONDS = 10.0
"""How long a fork waits for predictors at work: longer than any inference, so that it waits for all but a hung one."""

_SLEEP_SECONDS = 0.5

T = TypeVar("T")
P = ParamSpec("P")


class Inheritable(Protocol):
    """An object with a resource that a forked child must not use."""

    def after_fork(self) -> None:
        """Called in the child, where no other thread exists, before anything else uses the object."""
        ...


_objects: weakref.WeakSet[Inheritable] = weakref.WeakSet()


def register(item: Inheritable) -> None:
    """Call ``item.after_fork()`` in every forked child, as long as the object lives."""
    _objects.add(item)


def leak(item: object) -> None:
    """Keep an object and everything it refers to from being destroyed, even when the interpreter exits."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


class _Gate:
    """A gate that library calls pass and that a fork closes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[int] = Counter()
        self._forks = 0

    @contextlib.contextmanager
    def passed(self) -> Iterator[None]:
        thread = threading.get_ident()
        with self._changed:
            # One that is inside already may go deeper: the fork waits for it.
            self._changed.wait_for(lambda: not self._forks or thread in self._inside)
            self._inside[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[thread] -= 1
                if not self._inside[thread]:
                    del self._inside[thread]
                    self._changed.notify_all()

    def close(self) -> None:
        """Wait until no other thread is inside, and block new ones."""
        this_thread = threading.get_ident()
        self._changed.acquire()
        self._forks += 1
        self._changed.wait_for(lambda: not self._inside.keys() - {this_thread}, _PATIENCE_SECONDS)
        if any(True for _ in _objects):
            _wait_for_sleep()

    def open(self) -> None:
        self._forks -= 1
        self._changed.notify_all()
        self._changed.release()


_gate = _Gate()


def _wait_for_sleep() -> None:
    """Wait for a bounded time until every other thread of the process sleeps.

    For some hundred microseconds after an inference oneTBB's workers, which OpenVINO uses, look for more work. In a
    child of that moment they would for ever count as being at it, and OpenVINO would wait for them.
    """
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return
    this_thread, deadline, asleep = str(threading.get_native_id()), time.monotonic() + _SLEEP_SECONDS, 0
    while asleep < 2 and time.monotonic() < deadline:  # twice in a row: one may wake another
        others = [task for task in tasks.iterdir() if task.name != this_thread]
        asleep = asleep + 1 if all(map(_sleeps, others)) else 0
        time.sleep(0.001)


def _sleeps(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] != "R"
    except OSError:  # it has ended
        return True


def fork_waits() -> contextlib.AbstractContextManager[None]:
    """A context for calls into libraries with threads: a fork by another thread waits until the context ends.

    Engines are such libraries, and so are NumPy's BLAS and OpenCV. A fork in the middle of a matrix product leaves the
    child one that never ends.
    """
    return _gate.passed()


def holds_up_forks(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function to run inside :func:`fork_waits`."""

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        with fork_waits():
            return function(*args, **kwargs)

    return held


def _after_fork() -> None:
    global _gate
    _gate = _Gate()
    for item in list(_objects):
        item.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lambda: _gate.close(), after_in_parent=lambda: _gate.open(), after_in_child=_after_fork)
