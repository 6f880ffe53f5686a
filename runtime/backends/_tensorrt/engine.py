"""An open plan on the GPU, shared by the backends ``tensorrt`` and ``tensorrt_rtx``.

A call gets a :class:`runtime.backends._tensorrt.lane.Lane` from the pool of the GPU.
Batches are run in lanes of 1, 2, 4, … rows, and of the plan's usual and largest number, so that a stream of any batches
needs few of them: rows of padding are computed and cut off. What a row gives does not depend on the other rows, as the
session requires that cuts large batches.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping

from runtime.backends import NO_ARRAYS
from runtime.backends._cuda import Device, run_all
from runtime.backends._tensorrt.lane import Lane, LaneKey, Owner
from runtime.backends._tensorrt.plan import OpenPlan
from runtime.backends._tensorrt.pool import LanePool
from runtime.backends._tensorrt.resident import ResidentInputs
from runtime.common.arrays import Array
from runtime.errors import DeviceMemoryError, EngineError

_ATTEMPTS = 3


class PlanEngine:
    """A deserialised plan that runs inference. Threads may share it.

    Args:
        plan: The result of :func:`runtime.backends._tensorrt.plan.open_plan`.
        device: The GPU.
        pool: The lanes on that GPU, of this engine and of others.
        name: The name of the plan's file, for messages.
        batched: The inputs and outputs whose first axis is the batch; those of none are run as they come.
    """

    def __init__(
        self, plan: OpenPlan, device: Device, pool: LanePool, *, name: str, batched: frozenset[str] = frozenset()
    ) -> None:
        self._plan: OpenPlan | None = plan
        self._device = device
        self._pool = pool
        self._name = name
        self._bindings = plan.bindings(name)
        self.inputs = tuple(binding.name for binding in self._bindings if binding.is_input)
        self.outputs = tuple(binding.name for binding in self._bindings if not binding.is_input)
        self._batched = batched & {*self.inputs, *self.outputs}
        self._rows = _lane_rows(plan, [name for name in self.inputs if name in batched])
        self._owner = Owner()
        self._lock = threading.Lock()
        self._running = 0
        self.resident = ResidentInputs(device)

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Array] = NO_ARRAYS) -> dict[str, Array]:
        self._check({**feeds, **resident})
        with self._device.current(), self._entered() as plan:
            for attempt in range(_ATTEMPTS):
                try:
                    return self._run(plan, feeds, resident)
                except DeviceMemoryError:
                    # Of resident inputs, or of kernels that are loaded when a lane first runs.
                    if attempt == _ATTEMPTS - 1 or not self._pool.make_room():
                        raise
        raise EngineError(f"{self._name}: no attempt was made")

    def close(self) -> None:
        with self._device.current():
            with self._lock:
                self._plan = None  # after this no call begins; the last one that runs gives the rest back
                last = not self._running
            run_all([lambda: self._pool.close(self._owner), *([self.resident.close] if last else [])])

    @contextlib.contextmanager
    def _entered(self) -> Iterator[OpenPlan]:
        with self._lock:
            plan = self._plan
            if plan is None:
                raise EngineError("this engine has been closed")
            self._running += 1
        try:
            yield plan
        finally:
            with self._lock:
                self._running -= 1
                last = self._plan is None and not self._running
            if last:
                self.resident.close()

    def _run(self, plan: OpenPlan, feeds: Mapping[str, Array], resident: Mapping[str, Array]) -> dict[str, Array]:
        # Before a lane is held: two calls that hold one and wait for memory would wait for each other.
        memories = {name: self.resident.memory(array) for name, array in resident.items()}
        key, rows = self._key({**feeds, **resident}, frozenset(resident))
        lane = self._pool.take(key, lambda key: self._lane(plan, key))
        try:
            outputs = lane.run(feeds, memories, rows)
        except BaseException:
            self._pool.discard(lane)
            raise
        self._pool.give(lane)
        return outputs

    def _lane(self, plan: OpenPlan, key: LaneKey) -> Lane:
        return Lane(
            plan, self._device, self._bindings, key, batched=self._batched if key.rows else frozenset(), name=self._name
        )

    def _key(self, arrays: Mapping[str, Array], resident: frozenset[str]) -> tuple[LaneKey, int]:
        """The lane for these arrays, and their rows; 0 where no input is batched, or a resident one is."""
        batched = [name for name in self.inputs if name in self._batched]
        if not batched or resident & self._batched:
            return LaneKey(self._owner, tuple(arrays[name].shape for name in self.inputs), resident, 0), 0
        rows = arrays[batched[0]].shape[0]
        shapes = tuple(
            (0, *arrays[name].shape[1:]) if name in self._batched else arrays[name].shape for name in self.inputs
        )
        # Beyond the largest there is no lane: it is asked for, and the refusal names what the plan takes.
        return LaneKey(self._owner, shapes, resident, next((size for size in self._rows if size >= rows), rows)), rows

    def _check(self, arrays: Mapping[str, Array]) -> None:
        """Check the arrays' types against the plan; the session has checked them against the manifest."""
        for binding in self._bindings:
            if binding.is_input and arrays[binding.name].dtype != binding.dtype:
                raise EngineError(
                    f"{self._name}: input {binding.name!r} is {arrays[binding.name].dtype}; the plan takes "
                    f"{binding.dtype}: build the bundle again"
                )


def _lane_rows(plan: OpenPlan, batched: list[str]) -> tuple[int, ...]:
    """The rows of lanes, ascending: powers of two, and the plan's smallest, usual and largest number."""
    if not batched:
        return ()
    smallest, usual, largest = (shape[0] for shape in plan.profile(batched[0]))
    powers = {1 << exponent for exponent in range(largest.bit_length())}
    return tuple(sorted(size for size in powers | {smallest, usual, largest} if smallest <= size <= largest))
