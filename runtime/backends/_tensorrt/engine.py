"""An open plan on the GPU, shared by the backends ``tensorrt`` and ``tensorrt_rtx``.

A call gets a *lane*: an execution context of its own with a stream, page-locked buffers for the processor and device
buffers for the GPU, all for one set of shapes. TensorRT ties a captured CUDA graph to the state of its context, so a
lane's context never sees other shapes. The first call of a lane runs plainly, so that TensorRT does what it does once;
the second is followed by a capture of copies and inference as one CUDA graph, which all later calls launch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.backends import NO_ARRAYS
from runtime.backends._cuda import CapturedGraph, Device, Memory, MemoryKind, Stream
from runtime.backends._tensorrt import vendor
from runtime.backends._tensorrt.resident import ResidentInputs
from runtime.common.arrays import Array
from runtime.errors import EngineError

MAX_IDLE_LANES = 8
"""How many lanes are kept for later calls; each holds the activations of one inference."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Binding:
    """One input or output of the plan."""

    name: str
    dtype: np.dtype[Any]
    is_input: bool


class PlanEngine:
    """A deserialised plan that runs inference. Threads may share it.

    Args:
        plan: The result of :func:`open_plan`.
        device: The GPU.
        name: The name of the plan's file, for messages.
    """

    def __init__(self, plan: OpenPlan, device: Device, *, name: str) -> None:
        self._plan: OpenPlan | None = plan
        self._device = device
        self._name = name
        self._bindings = plan.bindings(name)
        self.inputs = tuple(binding.name for binding in self._bindings if binding.is_input)
        self.outputs = tuple(binding.name for binding in self._bindings if not binding.is_input)
        self._lock = threading.Lock()
        self._idle: list[_Lane] = []
        self._running = 0
        self.resident = ResidentInputs(device)

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Array] = NO_ARRAYS) -> dict[str, Array]:
        arrays = {**feeds, **resident}
        self._check(arrays)
        shapes = tuple(arrays[name].shape for name in self.inputs)
        with self._device.current():
            lane = self._take(shapes, frozenset(resident))
            try:
                memories = {name: self.resident.memory(array, lane.stream) for name, array in resident.items()}
                outputs = lane.run(feeds, memories)
            except BaseException:
                self._give(lane, keep=False)  # the state of its context is unknown
                raise
            self._give(lane, keep=True)
        return outputs

    def close(self) -> None:
        with self._device.current():
            with self._lock:
                self._plan = None  # after this no call begins; the last one that runs gives the rest back
                idle, self._idle = self._idle, []
                last = not self._running
            for lane in idle:
                lane.close()
            if last:
                self.resident.close()

    def _check(self, arrays: Mapping[str, Array]) -> None:
        """Check the arrays' types against the plan; the session has checked them against the manifest."""
        for binding in self._bindings:
            if binding.is_input and arrays[binding.name].dtype != binding.dtype:
                raise EngineError(
                    f"{self._name}: input {binding.name!r} is {arrays[binding.name].dtype}; the plan takes "
                    f"{binding.dtype}: build the bundle again"
                )

    def _take(self, shapes: Shapes, resident: frozenset[str]) -> _Lane:
        key = (shapes, resident)
        with self._lock:
            if self._plan is None:
                raise EngineError("this engine has been closed")
            self._running += 1
            plan = self._plan
            for index in reversed(range(len(self._idle))):  # the one that was used last is the warmest
                if self._idle[index].key == key:
                    return self._idle.pop(index)
        try:
            try:
                return _Lane(plan, self._device, self._bindings, key, name=self._name)
            except EngineError:
                if not self._drop_idle():
                    raise
                return _Lane(plan, self._device, self._bindings, key, name=self._name)  # with the memory they held
        except BaseException:
            with self._lock:
                self._running -= 1
            raise

    def _drop_idle(self) -> bool:
        with self._lock:
            idle, self._idle = self._idle, []
        for lane in idle:
            lane.close()
        return bool(idle)

    def _give(self, lane: _Lane, *, keep: bool) -> None:
        with self._lock:
            self._running -= 1
            closed = self._plan is None
            surplus = [] if keep and not closed else [lane]
            if not surplus:
                self._idle.append(lane)
                surplus, self._idle = self._idle[:-MAX_IDLE_LANES], self._idle[-MAX_IDLE_LANES:]
            last = closed and not self._running
        for item in surplus:
            item.close()
        if last:
            self.resident.close()


class OpenPlan:
    """A deserialised plan with the objects that must outlive it: the logger and the runtime."""

    def __init__(self, trt: Any, logger: Any, runtime: Any, engine: Any) -> None:
        self._trt = trt
        self._logger = logger
        self._runtime = runtime
        self._engine = engine
        self._lock = threading.Lock()

    def bindings(self, name: str) -> tuple[Binding, ...]:
        """Inputs and outputs in the plan's order.

        Raises:
            EngineError: One of them is of a kind that no graph of edgevis has.
        """
        trt, engine = self._trt, self._engine
        bindings = []
        for index in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(index)
            if engine.get_tensor_location(tensor) != trt.TensorLocation.DEVICE:
                raise EngineError(f"{name}: {tensor!r} holds shapes and lies with the processor; this is not supported")
            try:
                dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(tensor)))
            except TypeError as error:
                raise EngineError(f"{name}: {tensor!r} is of a type that NumPy lacks: {error}") from error
            bindings.append(Binding(tensor, dtype, engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT))
        return tuple(bindings)

    def context(self) -> Any:
        """A new execution context; EngineError when the GPU has not enough memory for it."""
        with self._lock:  # the vendor does not say that threads may do this at once
            self._logger.errors.clear()
            context = self._create_context()
        if context is None:
            raise EngineError(f"TensorRT cannot make an execution context: {self.errors()}")
        return context

    def errors(self) -> str:
        """The error messages that TensorRT has logged so far."""
        return "; ".join(self._logger.errors) or "it gives no reason"

    def allowed(self, name: str) -> str:
        """The allowed shapes of an input, as text for messages."""
        smallest, _, largest = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, 0))
        return f"{smallest} to {largest}"

    def _create_context(self) -> Any:
        strategies = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:  # TensorRT, whose kernels were made when the plan was built
            return self._engine.create_execution_context()
        # TensorRT-RTX compiles its kernels for a shape when it is first run, in the background unless it is told; a
        # captured graph would keep the slow ones that it starts with.
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return self._engine.create_execution_context(config)


def open_plan(data: bytes, flavour: vendor.Flavour, *, host_code: bool = False) -> OpenPlan:
    """Deserialise a plan.

    Args:
        data: The plan.
        flavour: The runtime: TensorRT or TensorRT-RTX.
        host_code: Whether it may hold code for the processor, as version-compatible plans do. Only for plans that were
            built here: such a plan is a program.

    Raises:
        EngineError: It comes to nothing: it is damaged, or of another version or GPU.
    """
    trt = vendor.load(flavour)
    logger = vendor.logger(trt)
    runtime = trt.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError(
            f"{flavour} {trt.__version__} cannot use the plan: {'; '.join(logger.errors) or 'it gives no reason'}"
        )
    return OpenPlan(trt, logger, runtime, engine)


class _Lane:
    """One execution context with its stream and buffers, for inputs of fixed shapes."""

    def __init__(
        self,
        plan: OpenPlan,
        device: Device,
        bindings: tuple[Binding, ...],
        key: tuple[Shapes, frozenset[str]],
        *,
        name: str,
    ) -> None:
        self.key = key
        self._name = name
        self._memory: list[Memory] = []
        self._graph: CapturedGraph | None = None
        self._capture_failed = False
        self._runs = 0  # with the present addresses
        self._addresses: dict[str, int] = {}
        self._plan = plan
        self._context: Any = plan.context()
        self.stream: Stream = device.stream()
        try:
            self._inputs, self._outputs = self._allocate(device, bindings, *key)
        except BaseException:
            self.close()
            raise

    def _allocate(
        self, device: Device, bindings: tuple[Binding, ...], shapes: Shapes, resident: frozenset[str]
    ) -> tuple[dict[str, _Buffer], dict[str, _Buffer]]:
        inputs = [binding for binding in bindings if binding.is_input]
        for binding, shape in zip(inputs, shapes, strict=True):
            if not self._context.set_input_shape(binding.name, shape):
                raise EngineError(
                    f"{self._name}: input {binding.name!r} has shape {shape}; the plan was built for "
                    f"{self._plan.allowed(binding.name)}: build the bundle with larger --max-shapes"
                )
        lacking = self._context.infer_shapes()
        if lacking:
            raise EngineError(f"{self._name}: TensorRT needs more than the input's shapes to infer those of {lacking}")
        buffers: tuple[dict[str, _Buffer], dict[str, _Buffer]] = ({}, {})
        for binding in bindings:
            if binding.name in resident:
                continue
            shape = tuple(self._context.get_tensor_shape(binding.name))
            if min(shape, default=0) < 0:
                raise EngineError(f"{self._name}: the shape of {binding.name!r} depends on the data: {shape}")
            buffer = self._buffer(device, shape, binding.dtype)
            buffers[0 if binding.is_input else 1][binding.name] = buffer
            self._set_address(binding.name, buffer.device.address)
        return buffers

    def _buffer(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Buffer:
        size = max(int(np.prod(shape)) * dtype.itemsize, 1)
        kinds: tuple[MemoryKind, ...] = ("mapped",) if device.info.integrated else ("pinned", "device")
        allocations = []
        for kind in kinds:
            allocations.append(device.allocate(size, kind))
            self._memory.append(allocations[-1])
        host = allocations[0].host
        if host is None:
            raise EngineError("page-locked memory without an address on the host")
        return _Buffer(host.view(dtype).reshape(shape), allocations[0], allocations[-1])

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Memory]) -> dict[str, Array]:
        """Run one inference; the caller owns the returned arrays."""
        for name, array in feeds.items():
            np.copyto(self._inputs[name].view, array)
        addresses = {name: memory.address for name, memory in resident.items()}
        if addresses != self._addresses:
            self._forget_graph()
            for name, address in addresses.items():
                self._set_address(name, address)
            self._addresses = addresses
        if self._graph is not None:
            self._graph.launch()
        else:
            self._queue()
        self.stream.synchronize()
        outputs = {name: buffer.view.copy() for name, buffer in self._outputs.items()}
        self._runs += 1
        if self._graph is None and self._runs == 2 and not self._capture_failed:
            self._capture()
        return outputs

    def _queue(self) -> None:
        for buffer in self._inputs.values():
            if buffer.pinned is not buffer.device:
                self.stream.copy(buffer.device, buffer.pinned)
        if not self._context.execute_async_v3(self.stream.handle):
            raise EngineError(f"{self._name}: TensorRT failed: {self._plan.errors()}")
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

    def _set_address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"{self._name}: TensorRT refuses the memory for {name!r}: {self._plan.errors()}")

    def _forget_graph(self) -> None:
        graph, self._graph = self._graph, None
        self._runs = 0
        if graph is not None:
            graph.close()

    def close(self) -> None:
        self._forget_graph()
        self._context = None
        for memory in self._memory:
            memory.close()
        self._memory = []
        self.stream.close()


@dataclass(frozen=True, slots=True)
class _Buffer:
    """An input's or output's memory, as the processor sees it and as the GPU does; ``mapped`` memory is both."""

    view: Array
    pinned: Memory
    device: Memory
