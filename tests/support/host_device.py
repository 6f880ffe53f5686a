"""A device on :class:`host_driver.HostDriver`, and a plan that ONNX Runtime computes on it.

With these the bookkeeping of :class:`runtime.backends._tensorrt.engine.PlanEngine` – lanes, buffers, addresses,
captured graphs, resident inputs, who frees what and who waits for whom – is tested on machines without a GPU, through
the adapters of both CUDA packages. They say nothing about CUDA or TensorRT: ``test_tensorrt_gpu.py`` does, where there
is a GPU.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from runtime.backends._cuda import Device, cuda_bindings, pycuda
from runtime.backends._tensorrt.engine import PlanEngine
from runtime.backends._tensorrt.plan import Binding, failure
from runtime.backends._tensorrt.pool import LanePool
from runtime.errors import EngineError

from bundles import MATCH, match_onnx
from host_driver import HostDriver, bindings_of, pycuda_of

MAX_ROWS = 8


class HostDevice(HostDriver):
    """The driver's only GPU, opened through the adapter of one CUDA package."""

    def __init__(
        self,
        *,
        package: str = "cuda-bindings",
        integrated: bool = False,
        capturable: bool = True,
        max_bytes: int = 1 << 40,
    ) -> None:
        super().__init__(integrated=integrated, capturable=capturable, max_bytes=max_bytes)
        module, vendor = (pycuda, pycuda_of(self)) if package == "pycuda" else (cuda_bindings, bindings_of(self))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_vendor", lambda: vendor)
            self.opened: Device = module.open_device()
        self.info = self.opened.info

    @property
    def left(self) -> tuple[object, ...]:
        """What is alive or went wrong; an engine that is closed leaves :data:`NOTHING`."""
        return (dict(self.live), sorted(self.streams), set(self.graphs), list(self.violations))


NOTHING: tuple[object, ...] = ({}, [], set(), [])


class MatchPlan:
    """:data:`bundles.MATCH` for up to ``max_rows`` rows, with the interface of an open plan.

    Attributes:
        contexts: How many execution contexts have been made.
        max_contexts: How many there is memory for at a time.
        row_bytes: The activations of a row, which contexts are lent; with 0 they bring their own.
        runs: How many inferences have been queued or captured.
    """

    captures = False

    def __init__(
        self, device: HostDevice, *, max_rows: int = MAX_ROWS, max_contexts: int = 1 << 20, row_bytes: int = 0
    ) -> None:
        import onnxruntime

        self.device = device
        self.session = onnxruntime.InferenceSession(
            match_onnx().SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self.max_rows = max_rows
        self.max_contexts = max_contexts
        self.row_bytes = row_bytes
        self.lends_memory = row_bytes > 0
        self.activation_bytes = max_rows * row_bytes
        self.contexts = 0
        self.alive = 0
        self.runs = 0

    def bindings(self, name: str) -> tuple[Binding, ...]:
        return tuple(
            Binding(tensor.name, np.dtype(tensor.dtype), tensor in MATCH.inputs)
            for tensor in (*MATCH.inputs, *MATCH.outputs)
        )

    def context(self) -> MatchContext:
        if self.alive >= self.max_contexts:
            raise failure("TensorRT cannot make an execution context", ["Error Code 2: OutOfMemory (no information)"])
        self.contexts += 1
        return MatchContext(self)

    def keep_kernels(self) -> None:
        """A plan of TensorRT holds its kernels."""

    def activation_bytes_of(self, context: MatchContext) -> int:
        return self.row_bytes * int(context.get_tensor_shape("query")[0])

    def failed(self, what: str) -> EngineError:
        return failure(what, ["none"])

    def profile(self, name: str) -> tuple[tuple[int, ...], ...]:
        inner = {"query": (4,), "weight": (), "support": (4,)}[name]
        return ((1, *inner), (1, *inner), (1000 if name == "support" else self.max_rows, *inner))


class MatchContext:
    """With TensorRT's names; its shapes and addresses are those of when it was queued, as on a GPU."""

    def __init__(self, plan: MatchPlan) -> None:
        self._plan = plan
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        with plan.device.lock:
            plan.alive += 1

    def __del__(self) -> None:
        with self._plan.device.lock:
            self._plan.alive -= 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return shape[0] <= self._plan.profile(name)[2][0]

    def infer_shapes(self) -> list[str]:
        self._shapes["scores"] = (self._shapes["query"][0], self._shapes["support"][0])
        self._shapes["total"] = (4,)
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address in self._plan.device.live

    def set_device_memory(self, address: int, size: int) -> None:
        self._addresses["activations"] = address
        if size < self._plan.activation_bytes_of(self):
            self._plan.device.violations.append("too little memory for activations")

    def execute_async_v3(self, stream: int) -> bool:
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        if self._plan.lends_memory and "activations" not in addresses:
            self._plan.device.violations.append("no memory for activations")
        self._plan.runs += 1

        def work() -> None:
            arrays = {name: _array(addresses[name], shape) for name, shape in shapes.items()}
            feeds = {tensor.name: arrays[tensor.name].copy() for tensor in MATCH.inputs}
            for tensor, value in zip(MATCH.outputs, self._plan.session.run(None, feeds), strict=True):
                arrays[tensor.name][...] = value

        self._plan.device.queue(stream, work, frozenset(addresses.values()))
        return True


BATCHED = frozenset({"query", "weight", "scores"})


def engine_on(
    device: HostDevice, plan: MatchPlan | None = None, *, pool: LanePool | None = None, batched: bool = True
) -> PlanEngine:
    """An engine of :data:`bundles.MATCH` on that device."""
    return PlanEngine(
        plan or MatchPlan(device),  # type: ignore[arg-type]
        device.opened,
        pool or LanePool(device.max_bytes // 2),
        name="match.onnx",
        batched=BATCHED if batched else frozenset(),
    )


def _array(address: int, shape: tuple[int, ...]) -> Any:
    return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(shape))).from_address(address)).reshape(shape)
