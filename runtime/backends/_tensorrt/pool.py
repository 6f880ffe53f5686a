"""The lanes of all engines on one GPU: kept for later calls by the memory that they hold, awaited when there is none.

As many calls run at once as there is memory for lanes. A call that finds none for a further lane takes an idle one that
can run it, else waits for one that is in use; only where no lane is in use is too little memory an error. So a process
with too many threads becomes slower and does not fail, and few lanes serve all batches where memory is scarce.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, cast

from runtime.backends._cuda import Device, run_all
from runtime.backends._tensorrt.lane import Lane, LaneKey, Owner
from runtime.errors import DeviceMemoryError, EngineError

MAX_IDLE_LANES = 256
"""How many idle lanes are kept at most: beside its device memory each holds some of the processor's."""

IDLE_SHARE = 2
"""Idle lanes hold at most the GPU's memory divided by this, the ones that were not used for longest are closed; half as
much on an integrated GPU, whose memory all programs share."""

_RETRY_SECONDS = 1.0
"""For how long a lack of memory counts as known: then another program may have freed some."""


def lane_pool(device: Device) -> LanePool:
    """The pool of a GPU, shared by all engines in the process."""
    return _pool(cast(Hashable, device))


@cache
def _pool(device: Any) -> LanePool:
    return LanePool(device.info.memory_bytes // IDLE_SHARE // (2 if device.info.integrated else 1))


class LanePool:
    """The lanes of one GPU. Threads share it.

    Args:
        max_idle_bytes: What idle lanes may hold.

    Attributes:
        counts: How many ``lanes`` were made, how many ``calls`` were run, and how many of these were ``launches`` of a
            CUDA graph.
    """

    def __init__(self, max_idle_bytes: int) -> None:
        self.counts = Counter(lanes=0, calls=0, launches=0)
        self._max_idle_bytes = max_idle_bytes
        self._changed = threading.Condition()
        self._idle: list[Lane] = []  # the one that was used last is the last
        self._busy: list[Lane] = []
        self._creating = False
        self._starved = False  # the creating call waits for a lane to close
        self._full_until = 0.0

    def take(self, key: LaneKey, make: Callable[[LaneKey], Lane]) -> Lane:
        """A lane for one call, idle or new; :meth:`give` it back.

        Raises:
            DeviceMemoryError: There is no memory for a lane, and none in use to wait for.
            EngineError: The engine has been closed, or ``make`` fails for another reason.
        """
        with self._changed:
            while True:
                if key.owner.closed:
                    raise EngineError("this engine has been closed")
                lane, create = self._choose(key)
                if lane is not None:
                    self._idle.remove(lane)
                    self._busy.append(lane)
                    return lane
                # One at a time makes a lane: two would each find too little memory where there is enough for one.
                if not create or self._creating:
                    self._changed.wait(_RETRY_SECONDS)
                    continue
                self._creating = True
                try:
                    lane = self._create(key, make)
                finally:
                    self._creating = self._starved = False
                    self._changed.notify_all()
                if lane is not None:
                    return lane

    def give(self, lane: Lane) -> None:
        """Take back a lane whose call is done."""
        with self._changed:
            self.counts.update(calls=1, launches=int(lane.launched))
            self._busy.remove(lane)
            surplus = [lane] if lane.key.owner.closed else []
            if not surplus:
                self._idle.append(lane)
                surplus = self._surplus()
            self._changed.notify_all()
        run_all([item.close for item in surplus])

    def discard(self, lane: Lane) -> None:
        """Close a lane whose call has failed: the state of its context is unknown."""
        lane.abandon()  # before others learn that its memory is free
        with self._changed:
            self._busy.remove(lane)
            self._full_until = 0.0
            self._changed.notify_all()

    def close(self, owner: Owner) -> None:
        """Close an engine's idle lanes; those in use are closed when they are given back. No call begins after it."""
        with self._changed:
            owner.closed = True
            idle = [lane for lane in self._idle if lane.key.owner is owner]
            self._idle = [lane for lane in self._idle if lane.key.owner is not owner]
        try:
            run_all([lane.close for lane in idle])
        finally:
            with self._changed:
                self._full_until = 0.0
                self._changed.notify_all()

    def make_room(self) -> bool:
        """Close the idle lane that was not used for longest; where there is none, wait for one that is in use.

        Returns:
            False where there is no lane at all.
        """
        with self._changed:
            while not self._idle:
                if not self._busy and not self._creating:
                    return False
                self._changed.wait(_RETRY_SECONDS)
            lane = self._idle.pop(0)
        lane.abandon()
        return True

    def _choose(self, key: LaneKey) -> tuple[Lane | None, bool]:
        """The idle lane to use, or whether to make one; with neither the call waits for a lane in use."""
        if self._starved:
            return None, False
        for lane in reversed(self._idle):  # the one that was used last is the warmest
            if lane.key == key:
                return lane, False
        if time.monotonic() >= self._full_until:
            return None, True
        if self._duplicate() is not None and not any(lane.key == key for lane in self._busy):
            return None, True  # of two equal lanes one goes, and its memory makes one of the right size
        fitting = [lane for lane in self._idle if lane.key.holds(key)]
        if fitting:  # more padding costs less than another context
            return min(fitting, key=lambda lane: lane.key.rows), False
        return None, not any(lane.key.holds(key) for lane in self._busy)

    def _create(self, key: LaneKey, make: Callable[[LaneKey], Lane]) -> Lane | None:
        """A new lane, in use; None where a lane that exists should be used. Called and returns with the lock held."""
        if time.monotonic() < self._full_until and (duplicate := self._duplicate()) is not None:
            self._drop(duplicate)
        while True:
            failed: DeviceMemoryError | None = None
            self._changed.release()
            try:
                lane = make(key)
            except DeviceMemoryError as error:
                failed = error
            finally:
                self._changed.acquire()
            if failed is None:
                self.counts.update(lanes=1)
                self._busy.append(lane)
                return lane
            self._full_until = time.monotonic() + _RETRY_SECONDS
            if any(other.key.holds(key) for other in (*self._idle, *self._busy)):
                return None
            self._starved = not self._idle
            while not self._idle:
                if not self._busy:
                    raise failed
                self._changed.wait(_RETRY_SECONDS)
            self._drop(self._duplicate() or self._idle[0])
            self._starved = False

    def _drop(self, lane: Lane) -> None:
        self._idle.remove(lane)
        self._changed.release()
        try:
            lane.abandon()
        finally:
            self._changed.acquire()

    def _duplicate(self) -> Lane | None:
        """An idle lane beside which there is another one of its key."""
        keys = [lane.key for lane in (*self._idle, *self._busy)]
        return next((lane for lane in self._idle if keys.count(lane.key) > 1), None)

    def _surplus(self) -> list[Lane]:
        """The idle lanes beyond the limits, the ones that were not used for longest, which no longer count as idle."""
        total, keep = 0, 0
        for lane in reversed(self._idle):
            total += lane.size_bytes
            if keep and (total > self._max_idle_bytes or keep == MAX_IDLE_LANES):
                break
            keep += 1
        surplus, self._idle = self._idle[: len(self._idle) - keep], self._idle[len(self._idle) - keep :]
        return surplus
