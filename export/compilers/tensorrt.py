"""The input of TensorRT's build on the device: typed ONNX, and a file with the shapes and limits of the build."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto

from export.compilers import engine_path, graph_path
from runtime.backends._tensorrt.spec import BuildSpec, spec_path
from runtime.bundle.spec import Precision
from runtime.errors import CompileError


def check() -> None:
    """Check nothing: the vendor's compiler runs on the device."""


def engine_from_onnx(
    model: ModelProto, *, graph: str, precision: Precision, bundle: Path, spec: BuildSpec | None = None
) -> Path:
    if spec is None:
        raise CompileError(f"graph {graph!r}: TensorRT needs the shapes that its engine shall take")
    if precision == "fp32":
        path = graph_path(bundle, graph)
    else:
        path = engine_path(bundle, "tensorrt", precision, graph, ".onnx")
        onnx.save(model, path)
    spec_path(path).write_text(spec.dumps(), encoding="utf-8")
    return path
