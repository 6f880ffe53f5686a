"""OpenVINO IR: ``NAME.xml`` with its weights in ``NAME.bin``, as ``benchmark_app`` and the C++ runtime open it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx import ModelProto, inliner

from export.compilers import engine_path
from export.metadata import SECTION
from runtime import backends
from runtime.backends._tensorrt.spec import BuildSpec
from runtime.bundle.spec import Precision
from runtime.common.vendors import import_openvino
from runtime.errors import CompileError


def check() -> None:
    backends.load("openvino").devices()


def engine_from_onnx(
    model: ModelProto, *, graph: str, precision: Precision, bundle: Path, spec: BuildSpec | None = None
) -> Path:
    if precision not in ("fp32", "bf16", "int8"):
        raise CompileError(f"graph {graph!r}: OpenVINO's CPU plugin runs fp32, bf16 and int8, not {precision}")
    # BF16 is the float IR, opened with another precision hint: the plugin rounds the weights itself.
    path = engine_path(bundle, "openvino", "int8" if precision == "int8" else "fp32", graph, ".xml")
    if not path.exists():
        ir_from_onnx(model, path)
    return path


def ir_from_onnx(model: ModelProto, path: Path) -> None:
    """Write the IR of an ONNX model to ``path`` (.xml) and its weights, in the types they have, beside it (.bin).

    ``Core.read_model``, not ``openvino.convert_model``: that one reports to its maker.

    Raises:
        CompileError: OpenVINO refused the graph.
        MissingDependencyError: OpenVINO is not installed.
    """
    openvino = import_openvino()
    inlined = inliner.inline_local_functions(model)  # OpenVINO 2026.4 does not read model-local functions
    try:
        ir = openvino.Core().read_model(model=inlined.SerializeToString(), weights=b"")
        _fold(ir)
        for entry in model.metadata_props:
            ir.set_rt_info(entry.value, [SECTION, entry.key])
        openvino.save_model(ir, path, compress_to_fp16=False)
    except Exception as error:  # OpenVINO raises bare RuntimeError, and others from its bindings
        raise CompileError(
            f"OpenVINO {openvino.__version__} cannot make an IR of the graph {path.stem!r}: {error}"
        ) from error


def _fold(ir: Any) -> None:
    """Fold constants and apply device-independent fusions, as OpenVINO's own converter does before it saves.

    The engine computes the same without it, but its file is twice as large and takes twice as long to compile on the
    device: 1.6 instead of 3.2 s for OSNet x0.25 in INT8 on a busy machine. The function is not public; where a
    release has it no more, the IR stays as it is.
    """
    try:
        from openvino._offline_transformations import apply_moc_transformations
    except ImportError:
        return
    apply_moc_transformations(ir, cf=True, smart_reshape=False)
