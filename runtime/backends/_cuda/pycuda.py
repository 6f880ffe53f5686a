"""CUDA through PyCUDA, where it is installed already: ``EDGEVIS_CUDA=pycuda``.

It retains the primary context and never imports ``pycuda.autoinit``, whose context nothing else in the process shares.
PyCUDA 2026.1 has no CUDA graphs: engines run without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from runtime.backends._cuda import CapturedGraph, Device, DeviceInfo, Memory, MemoryKind, Stream, kernel_driver
from runtime.errors import DeviceMemoryError, EngineError, MissingDependencyError, UnavailableError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, for which PyCUDA has no name


def open_device() -> Device:
    driver = _vendor()
    try:
        driver.init()
        if not driver.Device.count():
            raise UnavailableError("the NVIDIA driver finds no GPU")
        return _PycudaDevice(driver)
    except driver.Error as error:
        raise UnavailableError(f"the NVIDIA GPU cannot be used: {error}") from error


class _PycudaDevice:
    def __init__(self, driver: Any) -> None:
        device = driver.Device(0)
        attribute = driver.device_attribute
        self._driver = driver
        self._context = device.retain_primary_context()
        version = driver.get_driver_version()
        self.info = DeviceInfo(
            name=device.name(),
            compute_capability=device.compute_capability(),
            driver=f"CUDA {version // 1000}.{version % 1000 // 10} {kernel_driver()}".strip(),
            integrated=bool(device.get_attribute(attribute.INTEGRATED)),
            memory_bytes=int(device.total_memory()),
        )

    @contextmanager
    def current(self) -> Iterator[None]:
        with _mapped(self._driver):
            self._context.push()
        try:
            yield
        finally:
            with _mapped(self._driver):
                self._context.pop()

    def allocate(self, size_bytes: int, kind: MemoryKind) -> Memory:
        driver = self._driver
        with _mapped(driver):
            if kind == "device":
                allocation = driver.mem_alloc(size_bytes)
                return Memory(size_bytes, address=int(allocation), free=_freeing(driver, allocation))
            flags = driver.host_alloc_flags.DEVICEMAP if kind == "mapped" else 0
            host = driver.pagelocked_empty(size_bytes, np.uint8, mem_flags=flags)
            address = int(host.base.get_device_pointer()) if kind == "mapped" else 0
            return Memory(size_bytes, address=address, host=host, free=_freeing(driver, host.base))

    def stream(self) -> Stream:
        return _PycudaStream(self._driver)


class _PycudaStream:
    def __init__(self, driver: Any) -> None:
        self._driver = driver
        with _mapped(driver):
            self._stream = driver.Stream(_NON_BLOCKING)
        self.handle = int(self._stream.handle)

    def copy(self, target: Memory, source: Memory) -> None:
        with _mapped(self._driver):
            if not source.address:
                self._driver.memcpy_htod_async(target.address, source.host, self._stream)
            elif not target.address:
                self._driver.memcpy_dtoh_async(_first(target.host, source), source.address, self._stream)
            else:
                self._driver.memcpy_dtod_async(target.address, source.address, source.size_bytes, self._stream)

    def capture(self, work: Callable[[], None]) -> CapturedGraph:
        raise EngineError("PyCUDA has no CUDA graphs; cuda-bindings has")

    def synchronize(self) -> None:
        with _mapped(self._driver):
            self._stream.synchronize()

    def close(self) -> None:
        self._stream = None  # PyCUDA destroys it with its last reference


def _freeing(driver: Any, allocation: Any) -> Callable[[], None]:
    def free() -> None:
        with _mapped(driver):
            allocation.free()

    return free


def _first(host: Any, source: Memory) -> Any:
    """The part of a buffer that a copy of all of ``source`` fills; PyCUDA copies as much as the buffer takes."""
    return host[: source.size_bytes]


@contextmanager
def _mapped(driver: Any) -> Iterator[None]:
    try:
        yield
    except driver.MemoryError as error:
        raise DeviceMemoryError(f"CUDA: {error}; other programs or engines hold the GPU's memory") from error
    except driver.Error as error:
        raise EngineError(f"CUDA: {error}") from error


def _vendor() -> Any:
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise MissingDependencyError(
            "pycuda is not installed, or its CUDA libraries are missing; unset EDGEVIS_CUDA for cuda-bindings, or: "
            "pip install pycuda"
        ) from error
    return driver
