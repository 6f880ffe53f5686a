"""A device whose memory is the processor's, and a plan that ONNX Runtime computes on it.

With these the bookkeeping of :class:`runtime.backends._tensorrt.engine.PlanEngine` – lanes, buffers, addresses,
captured graphs,
resident inputs, who frees what – is tested on machines without a GPU. They say nothing about CUDA or TensorRT:
``test_tensorrt_gpu.py`` does, where there is a GPU.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from runtime.backends._cuda import DeviceInfo, Memory, MemoryKind
from runtime.backends._tensorrt.engine import Binding
from runtime.errors import EngineError

from bundles import MATCH, match_onnx

MAX_ROWS = 8


class HostDevice:
    """Counts what is alive: an engine that is closed leaves nothing."""

    def __init__(self, *, integrated: bool = False, capturable: bool = True, max_bytes: int = 1 << 40) -> None:
        self.info = DeviceInfo("Host", (8, 7), "no driver", integrated)
        self.capturable = capturable
        self.max_bytes = max_bytes
        self.live: dict[int, int] = {}
        self.copied: list[str] = []
        self.streams: set[HostStream] = set()
        self.graphs: set[HostGraph] = set()
        self.launches = 0
        self.capturing = threading.local()

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def allocate(self, size_bytes: int, kind: MemoryKind) -> Memory:
        if sum(self.live.values()) + size_bytes > self.max_bytes:
            raise EngineError("out of memory")
        block: Any = (ctypes.c_uint8 * size_bytes)()
        address = ctypes.addressof(block)
        self.live[address] = size_bytes
        kept = [block]

        def free() -> None:
            del self.live[address]
            kept.clear()

        host = None if kind == "device" else np.ctypeslib.as_array(block)
        return Memory(size_bytes, address=0 if kind == "pinned" else address, host=host, free=free)

    def stream(self) -> HostStream:
        stream = HostStream(self)
        self.streams.add(stream)
        return stream

    def do(self, work: Callable[[], None]) -> None:
        """Run it, or note it where the calling thread captures."""
        noted = getattr(self.capturing, "work", None)
        if noted is None:
            work()
        else:
            noted.append(work)


class HostStream:
    handle = 1

    def __init__(self, device: HostDevice) -> None:
        self._device = device

    def copy(self, target: Memory, source: Memory) -> None:
        if (target.host is None) == (source.host is None) or target.size_bytes < source.size_bytes:
            raise AssertionError("a copy between host and device was expected")
        self._device.copied.append("upload" if target.host is None else "download")
        to, of, size = _pointer(target), _pointer(source), source.size_bytes
        self._device.do(partial(_move, to, of, size))

    def capture(self, work: Callable[[], None]) -> HostGraph:
        if not self._device.capturable:
            raise EngineError("this device has no graphs")
        noted: list[Callable[[], None]] = []
        self._device.capturing.work = noted
        try:
            work()
        finally:
            self._device.capturing.work = None
        graph = HostGraph(self._device, noted)
        self._device.graphs.add(graph)
        return graph

    def synchronize(self) -> None:
        """What was queued is done already."""

    def close(self) -> None:
        self._device.streams.remove(self)


class HostGraph:
    def __init__(self, device: HostDevice, work: list[Callable[[], None]]) -> None:
        self._device = device
        self._work = work

    def launch(self) -> None:
        self._device.launches += 1
        for step in self._work:
            step()

    def close(self) -> None:
        self._device.graphs.remove(self)


class MatchPlan:
    """:data:`bundles.MATCH` for up to :data:`MAX_ROWS` rows, with the interface of an open plan."""

    def __init__(self, device: HostDevice) -> None:
        import onnxruntime

        self.device = device
        self.session = onnxruntime.InferenceSession(
            match_onnx().SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self.contexts = 0

    def bindings(self, name: str) -> tuple[Binding, ...]:
        return tuple(
            Binding(tensor.name, np.dtype(tensor.dtype), tensor in MATCH.inputs)
            for tensor in (*MATCH.inputs, *MATCH.outputs)
        )

    def context(self) -> MatchContext:
        self.contexts += 1
        return MatchContext(self)

    def errors(self) -> str:
        return "none"

    def allowed(self, name: str) -> str:
        return f"1 to {MAX_ROWS} rows"


class MatchContext:
    """With TensorRT's names; its shapes and addresses are those of when it was queued, as on a GPU."""

    def __init__(self, plan: MatchPlan) -> None:
        self._plan = plan
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return shape[0] <= MAX_ROWS

    def infer_shapes(self) -> list[str]:
        self._shapes["scores"] = (self._shapes["query"][0], self._shapes["support"][0])
        self._shapes["total"] = (4,)
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address in self._plan.device.live

    def execute_async_v3(self, stream: int) -> bool:
        addresses, shapes = dict(self._addresses), dict(self._shapes)

        def work() -> None:
            arrays = {name: self._array(addresses[name], shape) for name, shape in shapes.items()}
            feeds = {tensor.name: arrays[tensor.name].copy() for tensor in MATCH.inputs}
            for tensor, value in zip(MATCH.outputs, self._plan.session.run(None, feeds), strict=True):
                arrays[tensor.name][...] = value

        self._plan.device.do(work)
        return True

    def _array(self, address: int, shape: tuple[int, ...]) -> Any:
        if address not in self._plan.device.live:
            raise AssertionError("memory that was freed is used")
        return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(address)).reshape(shape)


def _pointer(memory: Memory) -> int:
    return memory.address if memory.host is None else int(memory.host.ctypes.data)


def _move(to: int, of: int, size_bytes: int) -> None:
    ctypes.memmove(to, of, size_bytes)
