"""ONNX Runtime on the CPU: runs the portable graphs everywhere, x86-64 and aarch64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.arrays import Array
from runtime.backends import NO_ARRAYS
from runtime.errors import EngineError, MissingDependencyError, UnknownBackendError
from runtime.spec import Precision

# BF16 and FP16 would need kernels that ONNX Runtime's CPU provider does not have for convolutions.
PRECISIONS = ("fp32", "int8")


def devices() -> tuple[str, ...]:
    _vendor()
    return ("cpu",)


def open_engine(path: Path, *, precision: Precision, device: str, threads: int | None) -> _Engine:
    if precision not in PRECISIONS:
        raise UnknownBackendError(f"onnxruntime runs {', '.join(PRECISIONS)} on the CPU, not {precision}")
    return _Engine(_vendor(), path, threads)


class _Engine:
    def __init__(self, ort: Any, path: Path, threads: int | None) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: they come back as exceptions
        if threads is not None:
            options.intra_op_num_threads = threads
        # Its threads may spin for the next operator of a run, but not after the run: they would take the cores from
        # whatever comes next, such as decoding the next frame or another engine in the process.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes share no base but Exception
            raise EngineError(f"ONNX Runtime {ort.__version__} cannot open {path.name}: {error}") from error
        self._session = session
        self.inputs = tuple(node.name for node in session.get_inputs())
        self.outputs = tuple(node.name for node in session.get_outputs())

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Array] = NO_ARRAYS) -> dict[str, Array]:
        if self._session is None:
            raise EngineError("this engine has been closed")
        try:
            values = self._session.run(self.outputs, {**feeds, **resident})  # reads NumPy's memory in place
        except Exception as error:  # as above
            raise EngineError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        self._session = None


def _vendor() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime is not installed: pip install onnxruntime") from error
    return onnxruntime
