"""A CUDA driver whose GPU memory is the processor's, behind the interfaces of ``cuda-bindings`` and of PyCUDA.

It keeps a ledger: what is allocated on which device, what is queued on which stream, which context each thread has.
Work is queued and runs when its stream is waited for, so that memory that is freed too early, a launch outside of the
device's context or a graph that nobody destroyed shows. The adapters in :mod:`runtime.backends._cuda` are tested on it
as they are. It says nothing about CUDA itself: ``test_cuda.py`` does, where there is a GPU.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

Work = tuple[Callable[[], None], frozenset[int]]


class OutOfMemory(Exception):
    """The ledger is full."""


class HostDriver:
    """The ledger. All numbers are those of now.

    Attributes:
        live: Address to size of all memory that is allocated.
        violations: What a GPU would have answered with wrong results or a crash.
        copied: ``"upload"``, ``"download"`` or ``"move"`` for each copy that was queued or captured.
        launches: How many graphs have been launched.
        graphs: Captured graphs and their executables that have not been destroyed.
        interruption: Raised by the next wait for a stream, as KeyboardInterrupt is.
        failing: Names of functions that fail from now on, with ``"unspecified launch failure"``.
    """

    def __init__(
        self, *, devices: int = 1, integrated: bool = False, capturable: bool = True, max_bytes: int = 1 << 40
    ) -> None:
        self.devices = devices
        self.integrated = integrated
        self.capturable = capturable
        self.max_bytes = max_bytes
        self.live: dict[int, int] = {}
        self.pinned: set[int] = set()
        self.violations: list[str] = []
        self.copied: list[str] = []
        self.launches = 0
        self.streams: dict[int, HostStream] = {}
        self.graphs: set[int] = set()
        self.captured: dict[int, list[Work]] = {}
        self.failing: set[str] = set()
        self.interruption: BaseException | None = None
        self.pending_error = False
        self.lock = threading.RLock()
        self._blocks: dict[int, Any] = {}
        self._numbers = itertools.count(1)
        self._thread = threading.local()

    @property
    def contexts(self) -> list[str]:
        """The calling thread's stack of contexts, the current one last."""
        stack: list[str] = self._thread.__dict__.setdefault("stack", [])
        return stack

    def in_context(self, what: str) -> None:
        if not self.contexts or self.contexts[-1] != "primary 0":
            self.violations.append(f"{what} in the context {self.contexts[-1:]}")

    def allocate(self, size: int, *, pinned: bool) -> int:
        self.in_context("allocation")
        with self.lock:
            if sum(self.live.values()) + size > self.max_bytes:
                raise OutOfMemory
            block: Any = (ctypes.c_uint8 * size)()
            ctypes.memset(block, 0xFF, size)  # float NaN: what nobody wrote is seen
            address = ctypes.addressof(block)
            self.live[address] = size
            self._blocks[address] = block
            if pinned:
                self.pinned.add(address)
            return address

    def free(self, address: int) -> None:
        self.in_context("free")
        with self.lock:
            if any(address in used for stream in self.streams.values() for _, used in stream.queue):
                self.violations.append("memory was freed that queued work uses")
            del self.live[address], self._blocks[address]
            self.pinned.discard(address)

    def stream(self) -> HostStream:
        self.in_context("stream")
        stream = HostStream(self, next(self._numbers))
        self.streams[stream.handle] = stream
        return stream

    def queue(self, handle: int, work: Callable[[], None], used: frozenset[int]) -> None:
        """Queue work on a stream, or note it in the graph that is captured from it."""
        self.in_context("work")
        self.streams[handle].add((work, used))

    def copy(self, to: int, of: int, size: int, handle: int) -> None:
        kinds = {(False, True): "upload", (True, False): "download"}
        self.copied.append(kinds.get((to in self.pinned, of in self.pinned), "move"))
        if self.live.get(to, 0) < size or self.live.get(of, 0) < size:
            self.violations.append("a copy beyond its memory")
        self.queue(handle, lambda: _move(to, of, size), frozenset({to, of}))

    def number(self) -> int:
        return next(self._numbers)

    def begin_capture(self, handle: int) -> None:
        self.streams[handle].capture = []

    def end_capture(self, handle: int) -> int | None:
        """The graph's number; None where something in it cannot be captured."""
        stream = self.streams[handle]
        work, stream.capture = stream.capture, None
        if work is None or stream.invalid or not self.capturable or "cudaStreamEndCapture" in self.failing:
            stream.invalid = False
            return None
        number = self.number()
        self.graphs.add(number)
        self.captured[number] = work
        return number

    def destroy_graph(self, number: int) -> None:
        self.graphs.remove(number)
        del self.captured[number]

    def launch(self, number: int, handle: int) -> None:
        self.launches += 1
        for work, used in self.captured[number]:
            self.queue(handle, work, used)


class HostStream:
    """One queue of work."""

    def __init__(self, driver: HostDriver, handle: int) -> None:
        self._driver = driver
        self.handle = handle
        self.queue: list[Work] = []
        self.capture: list[Work] | None = None
        self.invalid = False

    def __int__(self) -> int:
        return self.handle

    def add(self, item: Work) -> None:
        (self.queue if self.capture is None else self.capture).append(item)

    def synchronize(self) -> bool:
        """Run what is queued; False in a capture, which that breaks."""
        self._driver.in_context("synchronize")
        interruption, self._driver.interruption = self._driver.interruption, None
        if interruption is not None:
            raise interruption
        if self.capture is not None:
            self.invalid = True
            return False
        queue, self.queue = self.queue, []
        for work, used in queue:
            if not used <= self._driver.live.keys():
                self._driver.violations.append("memory that was freed is used")
                continue
            work()
        return True

    def destroy(self) -> None:
        self._driver.in_context("destroy")
        if self.queue:
            self._driver.violations.append("a stream was destroyed with work on it")
        self._driver.streams.pop(self.handle)


class Status(enum.Enum):
    """The statuses of ``cudaError_t`` and of ``CUresult`` that are used here."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureInvalidated = 901
    CUDA_SUCCESS = 1000
    CUDA_ERROR_OUT_OF_MEMORY = 1002


def bindings_of(driver: HostDriver) -> tuple[Any, Any]:
    """``cuda.bindings.driver`` and ``cuda.bindings.runtime`` of this driver."""

    def push(context: str) -> tuple[Any, ...]:
        driver.contexts.append(context)
        return (Status.CUDA_SUCCESS,)

    low = SimpleNamespace(
        CUresult=Status,
        cuInit=lambda flags: (Status.CUDA_SUCCESS,),
        cuDeviceGet=lambda ordinal: (Status.CUDA_SUCCESS, ordinal),
        cuDevicePrimaryCtxRetain=lambda device: (Status.CUDA_SUCCESS, f"primary {device}"),
        cuCtxPushCurrent=push,
        cuCtxPopCurrent=lambda: (Status.CUDA_SUCCESS, driver.contexts.pop()),
    )
    return low, _Runtime(driver)


class _Runtime:
    cudaError_t = Status
    cudaHostAllocMapped, cudaHostAllocDefault, cudaStreamNonBlocking = 2, 0, 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor="major",
        cudaDevAttrComputeCapabilityMinor="minor",
        cudaDevAttrIntegrated="integrated",
    )

    def __init__(self, driver: HostDriver) -> None:
        self._driver = driver

    def _done(self, name: str, value: Any = None) -> tuple[Any, ...]:
        if name in self._driver.failing:
            self._driver.pending_error = True
            return (Status.cudaErrorLaunchFailure, None)
        return (Status.cudaSuccess, value)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return self._done("cudaDriverGetVersion", 12060)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return self._done("cudaRuntimeGetVersion", 12060)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self._done("cudaGetDeviceCount", self._driver.devices)

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, ...]:
        return self._done(
            "cudaGetDeviceProperties", SimpleNamespace(name=b"Host\0", totalGlobalMem=self._driver.max_bytes)
        )

    def cudaDeviceGetAttribute(self, name: str, index: int) -> tuple[Any, ...]:
        return self._done(name, {"major": 8, "minor": 7, "integrated": int(self._driver.integrated)}[name])

    def cudaGetLastError(self) -> tuple[Any, ...]:
        self._driver.pending_error = False
        return (Status.cudaSuccess,)

    def cudaGetErrorString(self, status: Status) -> tuple[Any, ...]:
        texts = {Status.cudaErrorMemoryAllocation: b"out of memory"}
        return (Status.cudaSuccess, texts.get(status, b"unspecified launch failure"))

    def _allocate(self, size: int, *, pinned: bool) -> tuple[Any, ...]:
        try:
            return (Status.cudaSuccess, self._driver.allocate(size, pinned=pinned))
        except OutOfMemory:
            self._driver.pending_error = True
            return (Status.cudaErrorMemoryAllocation, None)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate(size, pinned=False)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return self._allocate(size, pinned=flags == self.cudaHostAllocDefault)

    def cudaHostGetDevicePointer(self, pointer: int, flags: int) -> tuple[Any, ...]:
        return self._done("cudaHostGetDevicePointer", pointer)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        self._driver.free(address)
        return self._done("cudaFree")

    def cudaFreeHost(self, pointer: int) -> tuple[Any, ...]:
        self._driver.free(pointer)
        return self._done("cudaFreeHost")

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        return self._done("cudaStreamCreateWithFlags", self._driver.stream())

    def cudaStreamDestroy(self, stream: HostStream) -> tuple[Any, ...]:
        stream.destroy()
        return self._done("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream: HostStream) -> tuple[Any, ...]:
        if not stream.synchronize():
            return (Status.cudaErrorStreamCaptureInvalidated,)
        return self._done("cudaStreamSynchronize")

    def cudaMemcpyAsync(self, to: int, of: int, size: int, kind: int, stream: HostStream) -> tuple[Any, ...]:
        self._driver.copy(to, of, size, stream.handle)
        return self._done("cudaMemcpyAsync")

    def cudaStreamBeginCapture(self, stream: HostStream, mode: int) -> tuple[Any, ...]:
        self._driver.begin_capture(stream.handle)
        return self._done("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream: HostStream) -> tuple[Any, ...]:
        graph = self._driver.end_capture(stream.handle)
        if graph is None:
            return (Status.cudaErrorStreamCaptureInvalidated, 0)
        return self._done("cudaStreamEndCapture", graph)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        if "cudaGraphInstantiate" in self._driver.failing:
            return self._done("cudaGraphInstantiate")
        number = self._driver.number()
        self._driver.graphs.add(number)
        self._driver.captured[number] = self._driver.captured[graph]
        return (Status.cudaSuccess, number)

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        self._driver.destroy_graph(graph)
        return self._done("cudaGraphDestroy")

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        self._driver.destroy_graph(graph)
        return self._done("cudaGraphExecDestroy")

    def cudaGraphLaunch(self, graph: int, stream: HostStream) -> tuple[Any, ...]:
        self._driver.launch(graph, stream.handle)
        return self._done("cudaGraphLaunch")


class PycudaError(Exception):
    """``pycuda.driver.Error``."""


class PycudaMemoryError(PycudaError):
    """``pycuda.driver.MemoryError``."""


def pycuda_of(driver: HostDriver) -> Any:
    """``pycuda.driver`` of this driver."""

    def allocate(size: int, *, pinned: bool) -> int:
        try:
            return driver.allocate(size, pinned=pinned)
        except OutOfMemory:
            raise PycudaMemoryError("cuMemAlloc failed: out of memory") from None

    class Allocation:
        def __init__(self, address: int) -> None:
            self.address = address

        def __int__(self) -> int:
            return self.address

        get_device_pointer = __int__

        def free(self) -> None:
            driver.free(self.address)

    class HostArray(np.ndarray):
        """With the allocation as its base, as PyCUDA makes them."""

        allocation: Allocation

        @property
        def base(self) -> Any:
            return self.allocation

    def pagelocked_empty(size: int, dtype: Any, mem_flags: int = 0) -> Any:
        allocation = Allocation(allocate(size, pinned=not mem_flags))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(allocation))).view(HostArray)
        array.allocation = allocation
        return array

    class Stream:
        def __init__(self, flags: int) -> None:
            self._stream = driver.stream()
            self.handle = self._stream.handle

        def synchronize(self) -> None:
            if "cudaStreamSynchronize" in driver.failing or not self._stream.synchronize():
                raise PycudaError("cuStreamSynchronize failed: unspecified launch failure")

        def __del__(self) -> None:
            if self.handle in driver.streams:
                self._stream.destroy()

    class Context:
        def push(self) -> None:
            driver.contexts.append("primary 0")

        def pop(self) -> None:
            driver.contexts.pop()

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        count = staticmethod(lambda: driver.devices)
        name = staticmethod(lambda: "Host")
        compute_capability = staticmethod(lambda: (8, 7))
        total_memory = staticmethod(lambda: driver.max_bytes)
        get_attribute = staticmethod(lambda name: int(driver.integrated))
        retain_primary_context = staticmethod(lambda: Context())

    return SimpleNamespace(
        Error=PycudaError,
        MemoryError=PycudaMemoryError,
        init=lambda: None,
        Device=Device,
        device_attribute=SimpleNamespace(INTEGRATED="integrated"),
        get_driver_version=lambda: 12060,
        mem_alloc=lambda size: Allocation(allocate(size, pinned=False)),
        host_alloc_flags=SimpleNamespace(DEVICEMAP=2),
        pagelocked_empty=pagelocked_empty,
        Stream=Stream,
        memcpy_htod_async=lambda to, host, stream: driver.copy(to, host.ctypes.data, host.size, stream.handle),
        memcpy_dtoh_async=lambda host, of, stream: driver.copy(host.ctypes.data, of, host.size, stream.handle),
        memcpy_dtod_async=lambda to, of, size, stream: driver.copy(to, of, size, stream.handle),
    )


def _move(to: int, of: int, size_bytes: int) -> None:
    ctypes.memmove(to, of, size_bytes)
