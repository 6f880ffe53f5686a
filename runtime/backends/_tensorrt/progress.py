"""What a build is doing and for how long: a line in the log every few seconds, as the first one takes minutes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EVERY_SECONDS = 10.0
"""How often a line is logged. A build that is faster says nothing."""

_log = logging.getLogger("edgevis.tensorrt.build")


class Phases:
    """The phases of a build that the builder has begun and not ended. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: dict[str, tuple[int, int]] = {}

    def start(self, name: str, steps: int) -> None:
        with self._lock:
            self._steps[name] = (0, steps)

    def step(self, name: str, step: int) -> None:
        with self._lock:
            self._steps[name] = (step + 1, self._steps.get(name, (0, 0))[1])

    def finish(self, name: str) -> None:
        with self._lock:
            self._steps.pop(name, None)

    @property
    def text(self) -> str:
        """The phases, the outer one first, such as ``"Building engine 2 of 3, Timing graph nodes 40 of 120"``."""
        with self._lock:
            return ", ".join(f"{name} {done} of {steps}" for name, (done, steps) in self._steps.items())


def monitor_of(trt: Any, phases: Phases) -> Any:
    """An ``IProgressMonitor`` that fills ``phases``; None where this version of TensorRT has none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the bindings carry no types
        """Called by the builder's threads."""

        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()


@contextmanager
def reported(what: str, *, before_seconds: float | None, phases: Phases) -> Iterator[None]:
    """Log what is going on as long as the block runs, from its first ten seconds on.

    Args:
        what: Such as ``"embed.onnx for Orin"``.
        before_seconds: What it took before; None where it is not known.
        phases: The builder's phases.
    """
    expected = "minutes, the first time" if before_seconds is None else f"{before_seconds:.0f} s before"
    started = time.monotonic()

    def report() -> None:
        now = f": {phases.text}" if phases.text else ""
        _log.warning(
            "building the plan of %s for %.0f s; it took %s%s", what, time.monotonic() - started, expected, now
        )

    with repeated(report, every_s=EVERY_SECONDS, thread="edgevis-build-progress"):
        yield


@contextmanager
def repeated(work: Callable[[], object], *, every_s: float, thread: str) -> Iterator[None]:
    """Call ``work`` every few seconds as long as the block runs, in a thread of that name."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(every_s):
            work()

    worker = threading.Thread(target=run, name=thread, daemon=True)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()
