"""The frame of a command line: errors become one line, and a terminating signal still runs the cleanup.

SIGTERM, as ``kill``, ``timeout``, systemd and container runtimes send it, and SIGHUP of a closed terminal end Python at
once, without a ``finally``: temporary folders and files would stay. Here they raise :class:`Terminated` in the main
thread instead, as Ctrl-C raises KeyboardInterrupt, and the exit status is the shell's: 128 + the signal's number.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from runtime.common.console import end_output, prepare_streams, report
from runtime.errors import EdgevisError

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = 130
# timeout(1) and service managers signal the process and then its group: the second one must not cut the sweep short.
_REPEATED_SECONDS = 10.0
_AGAIN_SECONDS = 0.05


class Terminated(KeyboardInterrupt):
    """Raised when a signal asks the process to end. Libraries treat it as Ctrl-C.

    Attributes:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"terminated by {signal.Signals(number).name}")
        self.number = number


def run_command(work: Callable[[], int], *, interrupted: str = "") -> int:
    """Run a command line's work.

    Args:
        work: Returns the exit status.
        interrupted: What standard error says after "interrupted" or "terminated"; empty prints neither.

    Returns:
        The process's exit status: that of ``work``; 1 after an error of edgevis, of the system or for lack of memory,
        which becomes one line; 130 when interrupted; 143 when terminated, 129 when its terminal was closed.
    """
    try:
        prepare_streams()
    except EdgevisError as error:
        report(error)
        return 1
    return end_output(_status(work, interrupted))


def _status(work: Callable[[], int], interrupted: str) -> int:
    try:
        with unwinding_signals():
            return work()
    except (EdgevisError, OSError) as error:  # OSError: the disk is full, the folder is read-only
        report(error)
    except MemoryError as error:
        report(f"out of memory: {str(error) or 'give smaller or fewer images'}")
    except KeyboardInterrupt as error:
        if interrupted:
            report(interrupted, kind="\nterminated" if isinstance(error, Terminated) else "\ninterrupted")
        return 128 + error.number if isinstance(error, Terminated) else _INTERRUPTED
    return 1


@contextmanager
def unwinding_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise :class:`Terminated` in the main thread, so that ``finally`` blocks run.

    A signal that is ignored (``nohup``) or has a handler already stays so. In another thread than the main one nothing
    changes. A child that was forked meanwhile ends at once: what its parent staged is its parent's to remove.

    Python drops an exception that is raised in a finaliser (``__del__``, a weak reference's callback); when it drops
    :class:`Terminated` or KeyboardInterrupt there, the signal is sent again a moment later, until it arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, first = os.getpid(), float("-inf")
    print_dropped = sys.unraisablehook

    def send_again(dropped: sys.UnraisableHookArgs) -> None:
        nonlocal first
        if not isinstance(dropped.exc_value, KeyboardInterrupt) or os.getpid() != owner:
            print_dropped(dropped)
            return
        number = dropped.exc_value.number if isinstance(dropped.exc_value, Terminated) else signal.SIGINT
        first = float("-inf")
        # Not from here: the handler would run, and raise, within the same finaliser.
        timer = threading.Timer(_AGAIN_SECONDS, os.kill, (owner, number))
        timer.daemon = True
        timers.append(timer)
        timer.start()

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if now - first > _REPEATED_SECONDS:
            first = now
            raise Terminated(number)

    taken: list[signal.Signals] = []
    timers: list[threading.Timer] = []
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end)
                taken.append(number)
        if taken:  # of nested calls the outer one
            sys.unraisablehook = send_again
        yield
    finally:
        if taken:
            sys.unraisablehook = print_dropped
        for timer in timers:
            timer.cancel()
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
