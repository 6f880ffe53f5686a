"""Inputs that stay on the GPU over many runs, such as the features of enrolled examples."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import numpy as np

from runtime.backends._cuda import Device, Memory, Stream
from runtime.common.arrays import Array


class ResidentInputs:
    """Copies of arrays on the GPU, made when an array is first given and kept as long as the array lives.

    A copy is found by the array's identity: the caller must not write to the array. Threads may share
    this; a thread that gives an array holds it until its run is over, so that no copy is freed while it is read.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._copies: dict[int, _Copy] = {}

    def memory(self, array: Array, stream: Stream) -> Memory:
        """The copy of an array, complete before this returns, so that any stream may read it.

        Args:
            array: C-contiguous.
            stream: Used for the copy, and waited for, when there is none yet.

        Raises:
            EngineError: The GPU has not enough memory.
        """
        with self._lock:
            self._free_dead()
            known = self._copies.get(id(array))
            if known is not None:
                return known.memory
            memory = self._upload(array, stream)
            self._copies[id(array)] = _Copy(weakref.ref(array), memory)
            return memory

    def __len__(self) -> int:
        with self._lock:
            self._free_dead()
            return len(self._copies)

    def close(self) -> None:
        """Free all copies; nothing may be reading them."""
        with self._lock:
            copies, self._copies = self._copies, {}
        for copy in copies.values():
            copy.memory.close()

    def _free_dead(self) -> None:
        for key in [key for key, copy in self._copies.items() if copy.array() is None]:
            self._copies.pop(key).memory.close()

    def _upload(self, array: Array, stream: Stream) -> Memory:
        size = max(array.nbytes, 1)
        flat = array.reshape(-1).view(np.uint8)
        if self._device.info.integrated:
            memory = self._device.allocate(size, "mapped")
            _fill(memory, flat)
            return memory
        memory = self._device.allocate(size, "device")
        try:
            staging = self._device.allocate(size, "pinned")
            try:
                _fill(staging, flat)
                stream.copy(memory, staging)
                stream.synchronize()
            finally:
                staging.close()
        except BaseException:
            memory.close()
            raise
        return memory


def _fill(memory: Memory, data: Array) -> None:
    if memory.host is not None:
        memory.host[: data.size] = data


@dataclass(frozen=True, slots=True)
class _Copy:
    array: weakref.ref[Array]
    memory: Memory
