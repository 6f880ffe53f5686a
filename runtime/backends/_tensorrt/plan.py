"""An open plan: a deserialised engine with its inputs and outputs, which makes execution contexts."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.backends._tensorrt import vendor
from runtime.backends._tensorrt.kernels import KernelCache, compiles_eagerly
from runtime.errors import DeviceMemoryError, EngineError

# The words of TensorRT and CUDA for too little memory, in the messages of errors 1 (CUDA runtime) and 2 (memory).
_NO_MEMORY = re.compile(r"out\s?of\s?memory|OUT_OF_MEMORY|memory allocation|could not be allocated|bad_alloc", re.I)

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Binding:
    """One input or output of the plan."""

    name: str
    dtype: np.dtype[Any]
    is_input: bool


class OpenPlan:
    """A deserialised plan with the objects that must outlive it: the logger and the runtime.

    Attributes:
        activation_bytes: The device memory for activations of the largest shapes.
        lends_memory: Whether a context is given its memory for activations, which then is that of its own shapes, by
            :meth:`activation_bytes_of`; else it allocates that of the largest shapes itself.
        captures: Whether the contexts capture CUDA graphs themselves.
    """

    def __init__(self, trt: Any, logger: Any, runtime: Any, engine: Any, *, kernels: KernelCache | None = None) -> None:
        self._kernels = kernels
        self._trt = trt
        self._logger = logger
        self._runtime = runtime
        self._engine = engine
        self._lock = threading.Lock()
        self.captures = hasattr(trt, "CudaGraphStrategy") and not compiles_eagerly()
        size = getattr(engine, "device_memory_size_v2", None)
        self.activation_bytes = int(engine.device_memory_size if size is None else size)
        context = trt.IExecutionContext  # these came with TensorRT 10.0 and 10.1
        self.lends_memory = (
            hasattr(trt, "ExecutionContextAllocationStrategy")
            and hasattr(context, "set_device_memory")
            and hasattr(context, "update_device_memory_size_for_shapes")
        )

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
        """A new execution context.

        Raises:
            DeviceMemoryError: The GPU has not enough memory for it.
            EngineError: TensorRT cannot make one for another reason.
        """
        with self._lock:  # the vendor does not say that threads may do this at once
            self._logger.errors.clear()
            context = self._create_context()
        if context is None:
            raise failure("TensorRT cannot make an execution context", self._logger.errors)
        return context

    def keep_kernels(self) -> None:
        """Keep what was compiled for a first run on disk, for other processes."""
        if self._kernels is not None:
            self._kernels.keep()

    def activation_bytes_of(self, context: Any) -> int:
        """The memory that a context needs for the shapes that it has been given; only where memory is lent."""
        return int(context.update_device_memory_size_for_shapes()) or self.activation_bytes

    def failed(self, what: str) -> EngineError:
        """The error of an execution context, with what TensorRT has logged."""
        return failure(what, self._logger.errors)

    def profile(self, name: str) -> tuple[Shape, Shape, Shape]:
        """The smallest, usual and largest shape of an input."""
        smallest, usual, largest = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(name, 0))
        return smallest, usual, largest

    def _create_context(self) -> Any:
        trt, engine = self._trt, self._engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED if self.lends_memory else None
        kernels = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if kernels is None:  # TensorRT, whose kernels were made when the plan was built
            return engine.create_execution_context() if strategy is None else engine.create_execution_context(strategy)
        # TensorRT-RTX compiles its kernels for a shape when it is first run, in the background unless it is told; a
        # graph that is captured here would keep the slow ones that it starts with.
        config = engine.create_runtime_config()
        if self.captures:
            config.dynamic_shapes_kernel_specialization_strategy = kernels.LAZY
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        else:
            config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
        if self._kernels is not None:
            self._kernels.attach(config)
        if strategy is not None:
            config.set_execution_context_allocation_strategy(strategy)
        return engine.create_execution_context(config)


def open_plan(
    data: bytes, flavour: vendor.Flavour, *, host_code: bool = False, kernels: KernelCache | None = None
) -> OpenPlan:
    """Deserialise a plan.

    Args:
        data: The plan.
        flavour: The runtime: TensorRT or TensorRT-RTX.
        host_code: Whether it may hold code for the processor, as version-compatible plans do. Only for plans that were
            built here: such a plan is a program.
        kernels: Where TensorRT-RTX's compiled kernels are kept.

    Raises:
        DeviceMemoryError: The GPU has not enough memory for its weights; the plan may be as good as any.
        EngineError: It comes to nothing: it is damaged, or of another version or GPU.
    """
    trt = vendor.load(flavour)
    logger = vendor.logger(trt)
    runtime = trt.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise failure(f"{flavour} {trt.__version__} cannot use the plan", logger.errors)
    return OpenPlan(trt, logger, runtime, engine, kernels=kernels)


def failure(what: str, logged: list[str]) -> EngineError:
    """The error that TensorRT's messages tell of: too little memory, or any other."""
    reason = "; ".join(logged)
    if _NO_MEMORY.search(reason):
        return DeviceMemoryError(f"{what}: {reason}; other programs or engines hold the GPU's memory")
    return EngineError(f"{what}: {reason or 'it gives no reason'}")
