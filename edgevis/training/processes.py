"""The processes of one training: which is the first, and how the others end with it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CHILD_SECONDS = 2.0


def is_first_process() -> bool:
    """Whether this is the process that was started by hand; the others are told their number by the environment."""
    from lightning_fabric.utilities import rank_zero

    return int(getattr(rank_zero.rank_zero_only, "rank", 0)) == 0


@contextmanager
def ending_processes(fabric: Any) -> Iterator[None]:
    """End the other processes of this training when this one ends by an error, an interrupt or a signal."""
    try:
        yield
    except BaseException:
        started: list[subprocess.Popen[Any]] = getattr(fabric.strategy.launcher, "procs", [])
        processes = started[:]
        started.clear()  # or Fabric, which watches them, kills this process before it has swept
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(_CHILD_SECONDS)
            except subprocess.TimeoutExpired:  # it waits for this one
                process.kill()
                process.wait()
        raise
