"""Inputs that stay on the GPU over many runs, such as the features of enrolled examples."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from dataclasses import dataclass

import numpy as np

from runtime.backends._cuda import Device, Memory, MemoryKind, run_all
from runtime.common.arrays import Array
from runtime.errors import EngineError

VARIABLE = "EDGEVIS_RESIDENT"
"""The environment variable with the kind of memory of resident inputs on an integrated GPU: ``device`` or ``mapped``.

Mapped memory costs no copy, but a Jetson's GPU does not keep it in its caches, and these are read by every inference.
``python -m benchmarks.gpu`` measures both on the device.
"""


def resident_kind(device: Device) -> MemoryKind:
    """The kind of memory for resident inputs; EngineError where :data:`VARIABLE` names none."""
    chosen = os.environ.get(VARIABLE) or "device"
    if chosen not in ("device", "mapped"):
        raise EngineError(f"{VARIABLE} is {chosen!r}; allowed: device, mapped")
    return "mapped" if chosen == "mapped" and device.info.integrated else "device"


class ResidentInputs:
    """Copies of arrays on the GPU, made when an array is first given and kept as long as the array lives.

    A copy is found by the array's identity: the caller must not write to the array. Threads may share
    this; a thread that gives an array holds it until its run is over, so that no copy is freed while it is read.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._copies: dict[int, _Copy] = {}

    def memory(self, array: Array) -> Memory:
        """The copy of an array, complete before this returns, so that any stream may read it.

        Args:
            array: C-contiguous.

        Raises:
            DeviceMemoryError: The GPU has not enough memory.
        """
        with self._lock:
            self._free_dead()
            known = self._copies.get(id(array))
            if known is not None:
                return known.memory
            memory = self._upload(array)
            self._copies[id(array)] = _Copy(weakref.ref(array), memory)
            return memory

    def __len__(self) -> int:
        with self._lock:
            return sum(copy.array() is not None for copy in self._copies.values())

    def close(self) -> None:
        """Free all copies; nothing may be reading them."""
        with self._lock:
            copies, self._copies = self._copies, {}
        run_all([copy.memory.close for copy in copies.values()])

    def _free_dead(self) -> None:
        for key in [key for key, copy in self._copies.items() if copy.array() is None]:
            self._copies.pop(key).memory.close()

    def _upload(self, array: Array) -> Memory:
        size = max(array.nbytes, 1)
        flat = array.reshape(-1).view(np.uint8)
        memory = self._device.allocate(size, resident_kind(self._device))
        try:
            if memory.host is not None:
                _fill(memory, flat)
            else:
                self._send(memory, flat)
        except BaseException:
            with contextlib.suppress(EngineError):  # what is to be reported is the failure
                memory.close()
            raise
        return memory

    def _send(self, memory: Memory, flat: Array) -> None:
        staging = self._device.allocate(memory.size_bytes, "pinned")
        try:
            _fill(staging, flat)
            stream = self._device.stream()
            try:
                stream.copy(memory, staging)
            finally:
                run_all([stream.synchronize, stream.close])
        finally:
            staging.close()


def _fill(memory: Memory, data: Array) -> None:
    if memory.host is not None:
        memory.host[: data.size] = data


@dataclass(frozen=True, slots=True)
class _Copy:
    array: weakref.ref[Array]
    memory: Memory
