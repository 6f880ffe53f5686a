"""ONNX Runtime: runs the portable graphs everywhere on the CPU, x86-64 and aarch64, and on NVIDIA GPUs.

The GPU needs the package ``onnxruntime-gpu``. Its CUDA provider is used unless the environment variable
``EDGEVIS_ONNXRUNTIME`` says ``tensorrt``: then its TensorRT provider takes the nodes that it can, and builds an engine
for each new shape when that is first run, which takes minutes and is kept in the cache.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runtime.backends import NO_ARRAYS
from runtime.backends._cuda import open_device
from runtime.bundle.engine_files import EngineFiles
from runtime.bundle.spec import Precision
from runtime.common.arrays import Array
from runtime.common.cache_folder import cache_folder
from runtime.common.vendors import import_onnxruntime as _vendor
from runtime.common.vendors import onnxruntime_conflict
from runtime.errors import EngineError, MissingDependencyError, UnavailableError, UnknownBackendError

_log = logging.getLogger("edgevis.onnxruntime")

# BF16 and FP16 would need kernels that ONNX Runtime's CPU provider does not have for convolutions.
PRECISIONS = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "fp16", "int8")}

VARIABLE = "EDGEVIS_ONNXRUNTIME"

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

# Arithmetic with shapes, which the CUDA provider leaves to the processor on purpose: the numbers are needed there.
_OF_SHAPES = frozenset({"Shape", "Size", "Gather", "Concat", "Cast", "Slice", "Squeeze", "Unsqueeze", "Range"})


def devices() -> tuple[str, ...]:
    if _CUDA not in _vendor().get_available_providers():
        return ("cpu",)
    try:
        open_device()
    except UnavailableError:
        return ("cpu",)
    except MissingDependencyError:
        pass  # ONNX Runtime itself can do without cuda-bindings, and says when it finds no GPU
    return ("cuda", "cpu")


def fingerprint(device: str) -> dict[str, str]:
    """See :meth:`runtime.backends.BuildsOnDevice.fingerprint`."""
    ort = _vendor()
    if device not in devices():
        cure = "" if _CUDA in ort.get_available_providers() else f": {_without_cuda()}"
        raise UnavailableError(
            f"onnxruntime {ort.__version__} has no device {device!r} here; it has {', '.join(devices())}{cure}"
        )
    info = open_device().info
    return {
        "onnxruntime": ort.__version__,
        "provider": _accelerator(ort),
        "gpu": f"{info.name} {info.sm}",
        "driver": info.driver,
    }


def build_on_device(files: EngineFiles) -> _NoBuild:
    """See :meth:`runtime.backends.BuildsOnDevice.build_on_device`: the graph is opened as it is."""
    return _NoBuild(len(files.main))


def open_engine(files: EngineFiles, *, precision: Precision, device: str, threads: int | None) -> _OrtEngine:
    allowed = PRECISIONS.get(device)
    if allowed is None:
        raise UnknownBackendError(f"onnxruntime has no device {device!r}; known: {', '.join(PRECISIONS)}")
    if precision not in allowed:
        where = "on the CPU" if device == "cpu" else "on NVIDIA GPUs"
        raise UnknownBackendError(f"onnxruntime runs {', '.join(allowed)} {where}, not {precision}")
    ort = _vendor()
    if device == "cpu":
        return _OrtEngine(ort, files, threads, [(_CPU, {})])
    providers = gpu_providers(_accelerator(ort), precision)
    if hasattr(ort, "preload_dlls"):  # since 1.21: CUDA and cuDNN from the wheels of onnxruntime-gpu[cuda,cudnn]
        with contextlib.redirect_stdout(sys.stderr):  # where it prints what it misses
            ort.preload_dlls()
    return _CudaEngine(ort, files, threads, providers)


@dataclass(frozen=True, slots=True)
class _NoBuild:
    size_bytes: int
    built: bool = False
    seconds: float = 0.0
    reason: str = ""


class _OrtEngine:
    _config: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, ort: Any, files: EngineFiles, threads: int | None, providers: list[tuple[str, dict[str, str]]]
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: they come back as exceptions
        if threads is not None:
            options.intra_op_num_threads = threads
        # Its threads may spin for the next operator of a run, but not after the run: they would take the cores from
        # whatever comes next, such as decoding the next frame or another engine in the process.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for key, value in self._config.items():
            options.add_session_config_entry(key, value)
        try:
            with _source(files) as source:
                session = ort.InferenceSession(source, options, providers=providers)
        except Exception as error:  # its exception classes share no base but Exception
            raise EngineError(f"ONNX Runtime {ort.__version__} cannot open {files.name}: {error}") from error
        if hasattr(session, "_model_bytes"):
            # Kept for a fallback to another provider, which is not wanted, as long as the session lives (1.32).
            session._model_bytes = None
        self._ort = ort
        self._session = session
        self.inputs = tuple(node.name for node in session.get_inputs())
        self.outputs = tuple(node.name for node in session.get_outputs())

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Array] = NO_ARRAYS) -> dict[str, Array]:
        if self._session is None:
            raise EngineError("this engine has been closed")
        try:
            values = self._values(self._session, feeds, resident)
        except Exception as error:  # as above
            raise EngineError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        self._session = None

    def _values(self, session: Any, feeds: Mapping[str, Array], resident: Mapping[str, Array]) -> list[Array]:
        return list(session.run(self.outputs, {**feeds, **resident}))  # reads NumPy's memory in place


class _CudaEngine(_OrtEngine):
    """A session on the GPU: resident inputs stay on the device, and nodes that run on the CPU are reported."""

    def __init__(
        self, ort: Any, files: EngineFiles, threads: int | None, providers: list[tuple[str, dict[str, str]]]
    ) -> None:
        on_processor = self._open(ort, files, threads, providers)
        provider = providers[0][0]
        if provider not in self._session.get_providers():
            # It prints why and falls back to the CPU, which was not requested.
            raise UnavailableError(
                f"ONNX Runtime {ort.__version__} cannot use its {provider} here: a library that it needs, such as "
                "cuDNN, CUDA's or TensorRT's, is missing or of another version"
            )
        self._session.disable_fallback()
        if on_processor:
            _log.warning(
                "%s: part of it runs on the processor, and its data cross the bus: %s", files.name, on_processor
            )
        self._lock = threading.Lock()
        self._resident: dict[int, tuple[weakref.ref[Array], Any]] = {}

    def close(self) -> None:
        super().close()
        with self._lock:
            self._resident = {}

    def _open(
        self, ort: Any, files: EngineFiles, threads: int | None, providers: list[tuple[str, dict[str, str]]]
    ) -> str:
        """Open the session; returns the nodes that run on the CPU, as text, or an empty text."""
        if hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
            self._config = {"session.record_ep_graph_assignment_info": "1"}
            super().__init__(ort, files, threads, providers)
            counts = processor_nodes(self._session)
            named = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            return f"{sum(counts.values())} nodes: {named}" if counts else ""
        # Older versions, such as 1.23, cannot say which nodes those are, but be forbidden to have any.
        try:
            self._config = {"session.disable_cpu_ep_fallback": "1"}
            super().__init__(ort, files, threads, [item for item in providers if item[0] != _CPU])
        except EngineError as error:
            if "fallback to CPU EP" not in str(error):
                raise
            self._config = {}
            super().__init__(ort, files, threads, providers)
            return f"some nodes, which onnxruntime {ort.__version__} does not name"
        return ""

    def _values(self, session: Any, feeds: Mapping[str, Array], resident: Mapping[str, Array]) -> list[Array]:
        here = {name: self._ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
        there = {name: self._on_device(array) for name, array in resident.items()}
        return [value.numpy() for value in session.run_with_ort_values(self.outputs, {**here, **there})]

    def _on_device(self, array: Array) -> Any:
        """The array's copy on the GPU, kept as long as the array lives; resident inputs must not be written to."""
        with self._lock:
            for key in [key for key, (owner, _) in self._resident.items() if owner() is None]:
                del self._resident[key]
            if id(array) not in self._resident:
                value = self._ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
                self._resident[id(array)] = (weakref.ref(array), value)
            return self._resident[id(array)][1]


@contextlib.contextmanager
def _source(files: EngineFiles) -> Iterator[bytes | str]:
    """The model argument of a session: the graph's bytes or, with external data, the path of a private copy.

    From bytes ONNX Runtime 1.32 looks for external data in the working folder, and where it takes them from memory
    instead it forgets those of subgraphs and functions. What it maps of the copy stays after the copy is removed.
    """
    if not files.external:
        yield files.main
        return
    with tempfile.TemporaryDirectory(prefix="edgevis-graph-") as name:
        folder = Path(name)
        for location, content in {files.name: files.main, **files.external}.items():
            path = folder / location
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield str(folder / files.name)


def processor_nodes(session: Any) -> Counter[str]:
    """Counts the nodes of each operator that ONNX Runtime placed on the CPU, without shape arithmetic.

    The session must have been told to record it.
    """
    return Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == _CPU
        for node in part.get_nodes()
        if node.op_type not in _OF_SHAPES
    )


def _without_cuda() -> str:
    """Advice for an ONNX Runtime package without GPU providers."""
    return onnxruntime_conflict() or "pip uninstall --yes onnxruntime && pip install onnxruntime-gpu"


def _accelerator(ort: Any) -> str:
    """The execution provider that the environment variable selects."""
    accelerator = os.environ.get(VARIABLE) or "cuda"
    known = {"cuda": _CUDA, "tensorrt": _TENSORRT}
    if accelerator not in known:
        raise UnknownBackendError(f"{VARIABLE} is {accelerator!r}; allowed: {', '.join(known)}")
    if known[accelerator] not in ort.get_available_providers():
        raise UnavailableError(f"onnxruntime {ort.__version__} has no {known[accelerator]}: {_without_cuda()}")
    return known[accelerator]


def gpu_providers(accelerator: str, precision: Precision) -> list[tuple[str, dict[str, str]]]:
    """The GPU providers with explicit options: defaults may change between versions, and TF32 changes results."""
    cuda = {
        "device_id": "0",
        "use_tf32": "0",
        # The exhaustive search, its default, times every algorithm again for each new shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    providers = [(_CUDA, cuda), (_CPU, {})]
    if accelerator != _TENSORRT:
        return providers
    folder = cache_folder() / "onnxruntime-tensorrt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"the engines that its TensorRT provider builds cannot be kept: {error}") from error
    tensorrt = {
        "device_id": "0",
        "trt_fp16_enable": "1" if precision in ("fp16", "int8") else "0",
        "trt_int8_enable": "1" if precision == "int8" else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
    return [(_TENSORRT, tensorrt), *providers]
