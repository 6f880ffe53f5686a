"""What a forked child does with the engines and locks that it inherits.

``fork`` copies the memory of a process but only the one thread that called it. In the child an engine waits for worker
threads that do not exist, whether it runs or is destroyed, and a lock that another thread held stays locked for ever.
So a fork waits until no predictor is at work, the child never touches an engine of its parent again, not even to
destroy it, and its locks are made anew. Python calls the functions at the end of this file at every ``os.fork``: also
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
from types import TracebackType
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

_PATIENCE_SECONDS = 10.0
"""How long a fork waits for predictors at work: longer than any inference, so that it waits for all but a hung one."""

_SLEEP_SECONDS = 0.5

T = TypeVar("T")
P = ParamSpec("P")


class Inheritable(Protocol):
    """What holds something that a child must not use."""

    def after_fork(self) -> None:
        """Called in the child, where no other thread exists, before anything else uses the object."""
        ...


_objects: weakref.WeakSet[Inheritable] = weakref.WeakSet()


def register(item: Inheritable) -> None:
    """Have ``item.after_fork()`` called in every forked child, as long as it lives."""
    _objects.add(item)


def leak(item: object) -> None:
    """Keep an object, and all that it refers to, from ever being destroyed, also when the interpreter ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


class ForkSafeLock:
    """A lock that is free in a forked child, whoever held it in the parent.

    It fits where what it guards is whole at any time, as with a state that a writer replaces in one assignment.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        register(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def after_fork(self) -> None:
        self._lock = threading.Lock()


class LazyAttribute(Generic[T]):
    """As :class:`functools.cached_property`, which before Python 3.12 holds a lock while it computes.

    Threads that ask at once may compute it twice; it must come to the same.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> LazyAttribute[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> LazyAttribute[T] | T:
        if instance is None:
            return self
        # The instance's own attribute is found before this descriptor from now on, for it has no __set__.
        return instance.__dict__.setdefault(self._name, self._compute(instance))  # type: ignore[no-any-return]


class _Gate:
    """Calls pass it to work; a fork closes it."""

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
        """Wait until no other thread is inside, and let none in."""
        own = threading.get_ident()
        self._changed.acquire()
        self._forks += 1
        self._changed.wait_for(lambda: not self._inside.keys() - {own}, _PATIENCE_SECONDS)
        if any(True for _ in _objects):
            _wait_for_sleep()

    def open(self) -> None:
        self._forks -= 1
        self._changed.notify_all()
        self._changed.release()


_gate = _Gate()


def _wait_for_sleep() -> None:
    """Wait, not long, until every other thread of the process sleeps.

    For some hundred microseconds after an inference oneTBB's workers, which OpenVINO uses, look for more work. In a
    child of that moment they would for ever count as being at it, and OpenVINO would wait for them.
    """
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return
    own, deadline, asleep = str(threading.get_native_id()), time.monotonic() + _SLEEP_SECONDS, 0
    while asleep < 2 and time.monotonic() < deadline:  # twice in a row: one may wake another
        others = [task for task in tasks.iterdir() if task.name != own]
        asleep = asleep + 1 if all(map(_sleeps, others)) else 0
        time.sleep(0.001)


def _sleeps(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] != "R"
    except OSError:  # it has ended
        return True


def fork_waits() -> contextlib.AbstractContextManager[None]:
    """What libraries with threads of their own are called within: another thread's fork waits until it is left.

    Engines are such libraries, and so are NumPy's BLAS and OpenCV. A fork in the middle of a matrix product leaves the
    child one that never ends.
    """
    return _gate.passed()


def holds_up_forks(function: Callable[P, T]) -> Callable[P, T]:
    """The function, all of it within :func:`fork_waits`."""

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
