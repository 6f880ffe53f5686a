"""ONNX Runtime on the CPU as a proxy for an engine that cannot run here: it runs the engine's graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calibration.quantize.sessions import open_session
from runtime.backends import NO_ARRAYS
from runtime.common.arrays import Array
from runtime.common.vendors import import_onnxruntime
from runtime.errors import EngineError, MissingDependencyError

# ONNX Runtime 1.31 rounds a convolution's float bias to int32 in steps of input scale times weight scale, and takes
# that product in the scales' type: in float16 it is nearly zero, and OSNet x0.25 came out at a cosine of 0.30 instead
# of 0.995. No error is raised.
_WRONG_WITH_HALF_SCALES = ["WeightBiasQuantization"]


class CpuProxy:
    """Runs an ONNX file in its declared types; ONNX Runtime casts where the CPU has no kernel for a type.

    Args:
        source: The file, or the serialised model.
        exact: Run every node as the file says it, nothing fused: Q/DQ then round between float operations.
        threads: CPU threads; 0 is what ONNX Runtime takes.

    Raises:
        EngineError: ONNX Runtime refuses the file.
        MissingDependencyError: It is not installed.
    """

    def __init__(self, source: Path | bytes, *, exact: bool = False, threads: int = 0) -> None:
        try:
            self._session = open_session(
                source, exact=exact, threads=threads, disabled_optimizers=_WRONG_WITH_HALF_SCALES
            )
        except MissingDependencyError:
            raise
        except Exception as error:  # ONNX Runtime's exception classes share no base but Exception
            name = "the graph" if isinstance(source, bytes) else source.name
            version = import_onnxruntime().__version__
            raise EngineError(f"ONNX Runtime {version} cannot open {name}: {error}") from error
        self.inputs = tuple(node.name for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Array] = NO_ARRAYS) -> dict[str, Array]:
        try:
            values = self._session.run(self.outputs, {**feeds, **resident})
        except Exception as error:  # as above
            raise EngineError(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        """Do nothing: the memory is freed with the object."""
