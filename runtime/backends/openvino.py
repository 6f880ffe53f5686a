"""OpenVINO on x86-64 and aarch64 CPUs: runs the IR (``.xml`` with its ``.bin`` beside it) that export wrote.

Three habits of OpenVINO 2026 shape this file. The CPU plugin runs BF16 where the processor has it unless the precision
is said, so it always is. An infer request shared by threads returns other callers' results, so every running call has
a request of its own. With shared inputs a later inference can overwrite the caller's array, so inputs are copied.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from runtime.backends import NO_ARRAYS
from runtime.bundle.engine_files import EngineFiles
from runtime.bundle.spec import Precision
from runtime.common.arrays import Array
from runtime.common.vendors import import_openvino as _vendor
from runtime.errors import EngineError, UnavailableError, UnknownBackendError

# INT8 lies in the graph, as Q/DQ; what is left in float then runs as float32.
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}

# Of a model with a fixed batch the CPU plugin fuses what stands between two INT8 layers into one loop, of one with an
# open batch it does not, and the two round in different places: OSNet x0.25's embedding of one image differed by 9e-3
# between a batch of one and a larger one (2026.4). Without that fusion, an internal property of the plugin, the two
# are equal, and one image takes 3.3 instead of 3.1 ms.
_UNFUSED: Mapping[str, str] = {"SNIPPETS_MODE": "DISABLE"}


def devices() -> tuple[str, ...]:
    available = _vendor().Core().available_devices
    if "CPU" not in available:
        raise UnavailableError(f"OpenVINO finds no CPU device here; it finds {available or 'none'}")
    return ("cpu",)


def open_engine(files: EngineFiles, *, precision: Precision, device: str, threads: int | None) -> _OpenVinoEngine:
    if precision not in _HINTS:
        raise UnknownBackendError(f"openvino runs {', '.join(_HINTS)} on the CPU, not {precision}")
    ov = _vendor()
    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UnavailableError("this processor has no BF16 arithmetic; use the fp32 or the int8 engine")
    return _OpenVinoEngine(ov, core, files, _HINTS[precision], threads, rounds=precision == "int8")


class _OpenVinoEngine:
    """An IR that is compiled at its first run: once for one image, once for all other batch sizes.

    A model compiled for a fixed batch of one is faster on one image than one for any batch (25 % on
    OSNet x0.25, 2 cores), and cameras mostly ask for one. One that rounds to int8 must give the same for both.
    """

    def __init__(self, ov: Any, core: Any, files: EngineFiles, hint: str, threads: int | None, *, rounds: bool) -> None:
        self._core = core
        self._rounds = rounds
        self._config = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            # Contents, not a path: OpenVINO maps the file of a path, and whoever writes to that changes the weights of
            # a compiled model, or ends the process. It copies these, with the alignment that it wants.
            self._model = core.read_model(model=_xml(files), weights=files.companion(".bin"))
            self.inputs = tuple(port.get_any_name() for port in self._model.inputs)
            self.outputs = tuple(port.get_any_name() for port in self._model.outputs)
            self._open_batch = tuple(
                port.get_any_name() for port in self._model.inputs if port.partial_shape[0].is_dynamic
            )
        except Exception as error:  # OpenVINO raises bare RuntimeError, and others from its bindings
            raise EngineError(f"OpenVINO {ov.__version__} cannot open {files.name}: {error}") from error
        self._lock = threading.Lock()
        self._pools: dict[bool, _RequestPool] = {}
        self._tensor = ov.Tensor

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Array] = NO_ARRAYS) -> dict[str, Array]:
        single = all((feeds if name in feeds else resident)[name].shape[0] == 1 for name in self._open_batch)
        pool = self._pools.get(single) or self._compile(single)
        names = frozenset(resident)
        request = pool.take(names)
        try:
            # A tensor is used where it lies; an array is copied into the request's own memory.
            shared = {name: self._tensor(array, shared_memory=True) for name, array in resident.items()}
            values = request.infer({**feeds, **shared}, share_inputs=False, share_outputs=False)
        except Exception as error:  # as above
            raise EngineError(f"OpenVINO failed: {error}") from error
        pool.give(request, names)  # a request that has failed is not used again
        return {name: values[index] for index, name in enumerate(self.outputs)}

    def close(self) -> None:
        with self._lock:
            self._model = None
            self._pools = {}

    def _compile(self, single: bool) -> _RequestPool:
        with self._lock:
            if self._model is None:
                raise EngineError("this engine has been closed")
            if single not in self._pools:
                try:
                    self._pools[single] = _RequestPool(self._compiled(single))
                except Exception as error:  # as above
                    raise EngineError(f"OpenVINO cannot compile the graph for this CPU: {error}") from error
            return self._pools[single]

    def _compiled(self, single: bool) -> Any:
        """The model compiled for one image or for any batch."""
        model = self._model
        if single:
            model = model.clone()
            model.reshape({name: _one_row(model.input(name).partial_shape) for name in self._open_batch})
        if not self._rounds:
            return self._core.compile_model(model, "CPU", self._config)
        try:
            return self._core.compile_model(model, "CPU", {**self._config, **_UNFUSED})
        except Exception as error:  # as above
            if "Unsupported property" not in str(error):
                raise
        # A release without that property: what is compiled for any batch is the same for all.
        return self._core.compile_model(self._model, "CPU", self._config)


class _RequestPool:
    """A pool of infer requests of one compiled model, one for each concurrent call.

    A request that was given resident inputs holds on to their memory, and would copy a later array *into* it; so it
    is only used again where the same inputs are resident.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: dict[frozenset[str], list[Any]] = {}

    def take(self, resident: frozenset[str]) -> Any:
        try:
            return self._idle.setdefault(resident, []).pop()  # these, and append, are atomic
        except IndexError:
            return self._compiled.create_infer_request()

    def give(self, request: Any, resident: frozenset[str]) -> None:
        self._idle[resident].append(request)


def _xml(files: EngineFiles) -> bytes:
    """The IR's text, checked to be XML: OpenVINO also accepts other formats, some of which reference further files."""
    if not files.main.lstrip().startswith(b"<"):
        raise ValueError("it is no IR: XML is needed")
    return files.main


def _one_row(shape: Any) -> Any:
    shape[0] = 1
    return shape
