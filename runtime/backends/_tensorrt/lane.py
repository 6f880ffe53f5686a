"""A lane: an execution context with a stream and buffers, for inputs of one set of shapes.

TensorRT ties a captured CUDA graph to the state of its context, so a lane's context never sees other shapes or
addresses: fewer rows than the lane's are padded, and resident inputs are copied on the GPU into the lane's own memory
when they are others than in its last run. The first call of a lane runs plainly, so that TensorRT does what it does
once; the second is followed by a capture of copies and inference as one CUDA graph, which all later calls launch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.backends._cuda import CapturedGraph, Device, Memory, MemoryKind, Stream, run_all
from runtime.backends._tensorrt.plan import Binding, OpenPlan
from runtime.backends._tensorrt.resident import resident_kind
from runtime.common.arrays import Array
from runtime.errors import EngineError

Shapes = tuple[tuple[int, ...], ...]

# After these runs of a lane: in the first all kernels are compiled, or the background begins to.
_KEEP_KERNELS = (1, 100)


class Owner:
    """An engine, as its lanes know it: whether it has been closed."""

    def __init__(self) -> None:
        self.closed = False


@dataclass(frozen=True, slots=True)
class LaneKey:
    """What a lane was made for.

    Attributes:
        owner: The engine.
        shapes: One shape per input of the plan; the first axis of a batched one is 0.
        resident: The names of the resident inputs.
        rows: The rows of the batched inputs; 0 where none is batched.
    """

    owner: Owner
    shapes: Shapes
    resident: frozenset[str]
    rows: int

    def holds(self, other: LaneKey) -> bool:
        """Whether a lane of this key can run a call of the other one, with more rows of padding at most."""
        return (
            self.owner is other.owner
            and self.rows >= other.rows
            and self.shapes == other.shapes
            and self.resident == other.resident
        )


class Lane:
    """One execution context with its stream and buffers. One thread uses it at a time.

    Args:
        plan: The open plan.
        device: The GPU.
        bindings: The plan's inputs and outputs.
        key: What the lane is for.
        batched: The names of the inputs and outputs whose first axis are the rows.
        name: The name of the plan's file, for messages.

    Attributes:
        launched: Whether the last call launched a CUDA graph.

    Raises:
        DeviceMemoryError: There is not enough memory for one more lane.
        EngineError: The plan does not take these shapes.
    """

    def __init__(
        self,
        plan: OpenPlan,
        device: Device,
        bindings: tuple[Binding, ...],
        key: LaneKey,
        *,
        batched: frozenset[str],
        name: str,
    ) -> None:
        self.key = key
        self._plan = plan
        self._device = device
        self._bindings = bindings
        self._batched = batched
        self._name = name
        self._memory: list[Memory] = []
        self._graph: CapturedGraph | None = None
        self._capture_failed = plan.captures
        self._runs = 0
        self.launched = False
        self._inputs: dict[str, _Buffer] = {}
        self._outputs: dict[str, _Buffer] = {}
        self._resident: dict[str, Memory] = {}
        self._loaded: dict[str, Memory] = {}  # what the resident buffers are copies of
        self._context: Any = plan.context()
        self._stream: Stream | None = None
        try:
            self._stream = device.stream()
            self._allocate(bindings, key)
        except BaseException:
            self.abandon()
            raise

    @property
    def size_bytes(self) -> int:
        """The memory that the lane holds, the context's included."""
        own = 0 if self._plan.lends_memory else self._plan.activation_bytes
        return own + sum(memory.size_bytes for memory in self._memory)

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Memory], rows: int) -> dict[str, Array]:
        """Run one inference.

        Args:
            feeds: The arrays of all inputs that are not resident.
            resident: The memory of the resident inputs; it must live until this returns.
            rows: The rows of the batched arrays, at most the lane's.

        Returns:
            One array per output; they belong to the caller.
        """
        for name, array in feeds.items():
            view = self._inputs[name].view
            np.copyto(view[:rows] if name in self._batched else view, array)
        for name, memory in resident.items():
            if self._loaded.get(name) is not memory:
                self._loaded.pop(name, None)
                self.stream.copy(self._resident[name], memory)
                self._loaded[name] = memory
        self.launched = self._graph is not None
        if self._graph is not None:
            self._graph.launch()
        else:
            self._queue()
        self.stream.synchronize()
        outputs = {
            name: (buffer.view[:rows] if name in self._batched else buffer.view).copy()
            for name, buffer in self._outputs.items()
        }
        self._runs += 1
        if self._runs in _KEEP_KERNELS:
            self._plan.keep_kernels()
        if self._graph is None and self._runs == 2 and not self._capture_failed:
            self._capture()
        return outputs

    @property
    def stream(self) -> Stream:
        if self._stream is None:
            raise EngineError(f"{self._name}: this lane has been closed")
        return self._stream

    def close(self) -> None:
        """Wait for what is queued, and free everything; EngineError of what fails first, after all has been tried."""
        stream, self._stream = self._stream, None
        graph, self._graph = self._graph, None
        memory, self._memory = self._memory, []
        self._inputs, self._outputs, self._resident, self._loaded = {}, {}, {}, {}
        steps: list[Callable[[], None]] = []
        if stream is not None:
            steps.append(stream.synchronize)  # a call that was interrupted may have left work that uses all of this
        if graph is not None:
            steps.append(graph.close)
        steps.append(self._forget_context)
        steps.extend(block.close for block in memory)
        if stream is not None:
            steps.append(stream.close)
        run_all(steps)

    def abandon(self) -> None:
        """Close after a failure, whose error is the one to report."""
        with contextlib.suppress(EngineError):
            self.close()

    def _forget_context(self) -> None:
        self._context = None

    def _allocate(self, bindings: tuple[Binding, ...], key: LaneKey) -> None:
        inputs = [binding for binding in bindings if binding.is_input]
        for binding, shape in zip(inputs, key.shapes, strict=True):
            full = (key.rows, *shape[1:]) if binding.name in self._batched and key.rows else shape
            if not self._context.set_input_shape(binding.name, full):
                smallest, _, largest = self._plan.profile(binding.name)
                raise EngineError(
                    f"{self._name}: input {binding.name!r} has shape {full}; the plan was built for "
                    f"{smallest} to {largest}: build the bundle with larger --max-shapes"
                )
        lacking = self._context.infer_shapes()
        if lacking:
            raise EngineError(f"{self._name}: TensorRT needs more than the input's shapes to infer those of {lacking}")
        if self._plan.lends_memory:
            size = max(self._plan.activation_bytes_of(self._context), 1)
            self._context.set_device_memory(self._held(size, "device").address, size)
        for binding in bindings:
            shape = tuple(self._context.get_tensor_shape(binding.name))
            if min(shape, default=0) < 0:
                raise EngineError(f"{self._name}: the shape of {binding.name!r} depends on the data: {shape}")
            size = max(int(np.prod(shape)) * binding.dtype.itemsize, 1)
            if binding.name in key.resident:
                memory = self._held(size, resident_kind(self._device))
                self._resident[binding.name] = memory
            else:
                buffer = self._buffer(size, shape, binding.dtype)
                (self._inputs if binding.is_input else self._outputs)[binding.name] = buffer
                memory = buffer.device
            if not self._context.set_tensor_address(binding.name, memory.address):
                raise self._plan.failed(f"{self._name}: TensorRT refuses the memory for {binding.name!r}")

    def _buffer(self, size: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Buffer:
        kinds: tuple[MemoryKind, ...] = ("mapped",) if self._device.info.integrated else ("pinned", "device")
        allocations = [self._held(size, kind) for kind in kinds]
        host = allocations[0].host
        if host is None:
            raise EngineError("page-locked memory without an address on the host")
        host[...] = 0  # rows of padding are computed too: an index among them must be one
        return _Buffer(host.view(dtype).reshape(shape), allocations[0], allocations[-1])

    def _held(self, size: int, kind: MemoryKind) -> Memory:
        self._memory.append(self._device.allocate(size, kind))
        return self._memory[-1]

    def _queue(self) -> None:
        for buffer in self._inputs.values():
            if buffer.pinned is not buffer.device:
                self.stream.copy(buffer.device, buffer.pinned)
        if not self._context.execute_async_v3(self.stream.handle):
            raise self._plan.failed(f"{self._name}: TensorRT failed")
        for buffer in self._outputs.values():
            if buffer.pinned is not buffer.device:
                self.stream.copy(buffer.pinned, buffer.device)

    def _capture(self) -> None:
        """Capture :meth:`_queue` as a CUDA graph; if that fails, each call is queued as before."""
        capturable = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX tells
        try:
            if capturable is not None and not capturable(self.stream.handle):
                self._capture_failed = True
                return
            self._graph = self.stream.capture(self._queue)
        except EngineError:
            self._capture_failed = True  # as where the graph has a loop, or the CUDA package has no graphs


@dataclass(frozen=True, slots=True)
class _Buffer:
    """An input's or output's memory, as the processor sees it and as the GPU does; ``mapped`` memory is both."""

    view: Array
    pinned: Memory
    device: Memory
