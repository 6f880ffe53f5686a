"""CUDA through NVIDIA's ``cuda-bindings``: wheels that install anywhere and need nothing but the driver."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from runtime.backends._cuda import CapturedGraph, Device, DeviceInfo, Memory, MemoryKind, Stream, kernel_driver
from runtime.errors import DeviceMemoryError, EngineError, MissingDependencyError, UnavailableError

_INDEX = 0


def open_device() -> Device:
    driver, rt = _vendor()
    version = 0
    try:
        version = _call(rt, "cudaDriverGetVersion")
        if not version:
            raise UnavailableError(
                "there is no NVIDIA driver here: install one, or in a container start it with the NVIDIA runtime "
                "(docker run --gpus all)"
            )
        count = _call(rt, "cudaGetDeviceCount")
        if not count:
            raise UnavailableError("the NVIDIA driver finds no GPU")
        _call_driver(driver, "cuInit", 0)
        context = _call_driver(driver, "cuDevicePrimaryCtxRetain", _call_driver(driver, "cuDeviceGet", _INDEX))
        with _pushed(driver, context):
            return _BindingsDevice(driver, rt, context, _info(rt, version))
    except EngineError as error:
        built = ".".join(map(str, _split(rt.cudaRuntimeGetVersion()[1])))
        loaded = ".".join(map(str, _split(version)))
        raise UnavailableError(
            f"the NVIDIA GPU cannot be used: {error}; cuda-bindings is for CUDA {built}, the driver brings {loaded}: "
            f"pip install 'cuda-bindings=={_split(version)[0]}.*' if the first is newer"
        ) from error
    except UnavailableError:
        raise
    except Exception as error:  # a driver library that does not load comes as one of several classes
        raise UnavailableError(f"the NVIDIA driver cannot be used: {error}") from error


class _BindingsDevice:
    def __init__(self, driver: Any, rt: Any, context: Any, info: DeviceInfo) -> None:
        self._driver = driver
        self._rt = rt
        self._context = context
        self.info = info

    def current(self) -> contextlib.AbstractContextManager[None]:
        # Pushed and popped rather than cudaSetDevice, which would leave the thread on this GPU, and on its primary
        # context where the program has one of its own. Both calls cost less than a microsecond.
        return _pushed(self._driver, self._context)

    def allocate(self, size_bytes: int, kind: MemoryKind) -> Memory:
        rt = self._rt
        if kind == "device":
            address = int(_call(rt, "cudaMalloc", size_bytes))
            return Memory(size_bytes, address=address, free=lambda: _call(rt, "cudaFree", address))
        flags = rt.cudaHostAllocMapped if kind == "mapped" else rt.cudaHostAllocDefault
        pointer = int(_call(rt, "cudaHostAlloc", size_bytes, flags))
        host = np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(pointer))
        memory = Memory(size_bytes, host=host, free=lambda: _call(rt, "cudaFreeHost", pointer))
        if kind == "mapped":
            try:
                memory.address = int(_call(rt, "cudaHostGetDevicePointer", pointer, 0))
            except BaseException:
                memory.close()
                raise
        return memory

    def stream(self) -> Stream:
        return _BindingsStream(self._rt)


class _BindingsStream:
    def __init__(self, rt: Any) -> None:
        self._rt = rt
        # Not ordered after the legacy default stream, which other code in the process may use.
        self._stream = _call(rt, "cudaStreamCreateWithFlags", rt.cudaStreamNonBlocking)
        self.handle = int(self._stream)

    def copy(self, target: Memory, source: Memory) -> None:
        kinds = self._rt.cudaMemcpyKind
        if not source.address:
            kind = kinds.cudaMemcpyHostToDevice
        elif not target.address:
            kind = kinds.cudaMemcpyDeviceToHost
        else:
            kind = kinds.cudaMemcpyDeviceToDevice
        _call(self._rt, "cudaMemcpyAsync", _pointer(target), _pointer(source), source.size_bytes, kind, self._stream)

    def capture(self, work: Callable[[], None]) -> CapturedGraph:
        rt = self._rt
        # Thread-local: what other threads do meanwhile, such as allocating, does not break the capture.
        _call(rt, "cudaStreamBeginCapture", self._stream, rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            # Or the stream stays in capture; what is to be reported is the error of the work, not the end's.
            with contextlib.suppress(EngineError):
                graph = _call(rt, "cudaStreamEndCapture", self._stream)
                if int(graph):  # what had been captured before the work failed
                    _call(rt, "cudaGraphDestroy", graph)
            raise
        graph = _call(rt, "cudaStreamEndCapture", self._stream)
        try:
            return _CudaGraph(rt, _call(rt, "cudaGraphInstantiate", graph, 0), self._stream)
        finally:
            _call(rt, "cudaGraphDestroy", graph)

    def synchronize(self) -> None:
        _call(self._rt, "cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            _call(self._rt, "cudaStreamDestroy", stream)


class _CudaGraph:
    def __init__(self, rt: Any, executable: Any, stream: Any) -> None:
        self._rt = rt
        self._executable = executable
        self._stream = stream

    def launch(self) -> None:
        _call(self._rt, "cudaGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        if self._executable is not None:
            executable, self._executable = self._executable, None
            _call(self._rt, "cudaGraphExecDestroy", executable)


def _info(rt: Any, version: int) -> DeviceInfo:
    def attribute(name: str) -> int:
        return int(_call(rt, "cudaDeviceGetAttribute", getattr(rt.cudaDeviceAttr, name), _INDEX))

    properties = _call(rt, "cudaGetDeviceProperties", _INDEX)
    name = properties.name
    return DeviceInfo(
        name=name.split(b"\0")[0].decode() if isinstance(name, bytes) else str(name),
        compute_capability=(
            attribute("cudaDevAttrComputeCapabilityMajor"),
            attribute("cudaDevAttrComputeCapabilityMinor"),
        ),
        driver="CUDA {}.{} {}".format(*_split(version), kernel_driver()).strip(),
        integrated=bool(attribute("cudaDevAttrIntegrated")),
        memory_bytes=int(properties.totalGlobalMem),
    )


@contextmanager
def _pushed(driver: Any, context: Any) -> Iterator[None]:
    _call_driver(driver, "cuCtxPushCurrent", context)
    try:
        yield
    finally:
        _call_driver(driver, "cuCtxPopCurrent")


def _pointer(memory: Memory) -> int:
    return memory.address or (0 if memory.host is None else int(memory.host.ctypes.data))


def _split(version: int) -> tuple[int, int]:
    return version // 1000, version % 1000 // 10


def _call(rt: Any, name: str, *arguments: Any) -> Any:
    """Returns a CUDA runtime function's results without its status.

    Raises:
        DeviceMemoryError: There is not enough memory.
        EngineError: Any other status than success.
    """
    status, *values = getattr(rt, name)(*arguments)
    if status == rt.cudaError_t.cudaSuccess:
        return values[0] if values else None
    rt.cudaGetLastError()  # or the next that asks, such as PyTorch after a kernel, takes the error for its own
    text = rt.cudaGetErrorString(status)[1]
    what = f"{name}: {text.decode() if isinstance(text, bytes) else text} ({status.name})"
    if status == rt.cudaError_t.cudaErrorMemoryAllocation:
        raise DeviceMemoryError(f"{what}; other programs or engines hold the GPU's memory")
    raise EngineError(what)


def _call_driver(driver: Any, name: str, *arguments: Any) -> Any:
    """Returns a CUDA driver function's result without its status; EngineError when the status is not success."""
    status, *values = getattr(driver, name)(*arguments)
    if status == driver.CUresult.CUDA_SUCCESS:
        return values[0] if values else None
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise DeviceMemoryError(f"{name}: {status.name}; other programs or engines hold the GPU's memory")
    raise EngineError(f"{name}: {status.name}")


def _vendor() -> tuple[Any, Any]:
    try:
        from cuda.bindings import driver, runtime
    except ImportError as error:
        raise MissingDependencyError(
            "cuda-bindings is not installed: pip install cuda-bindings (or set EDGEVIS_CUDA=pycuda where that is)"
        ) from error
    return driver, runtime
