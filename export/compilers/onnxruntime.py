"""ONNX Runtime opens ONNX as it is: its FP32 engine is the portable graph itself, its INT8 engine the Q/DQ graph."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto

from export.compilers import engine_path, graph_path
from runtime.errors import CompileError
from runtime.spec import Precision


def engine_from_onnx(model: ModelProto, *, graph: str, precision: Precision, bundle: Path) -> Path:
    if precision == "fp32":
        return graph_path(bundle, graph)
    if precision != "int8":
        raise CompileError(f"graph {graph!r}: ONNX Runtime's CPU provider runs fp32 and int8, not {precision}")
    path = engine_path(bundle, "onnxruntime", precision, graph, ".onnx")
    onnx.save(model, path)
    return path
