"""ONNX Runtime opens ONNX files: its FP32 engine is the portable graph, the others are that graph in other types."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto

from export.compilers import ENGINES, engine_path, graph_path
from runtime import backends
from runtime.backends._tensorrt.spec import BuildSpec
from runtime.bundle.spec import Precision
from runtime.errors import CompileError


def check() -> None:
    backends.load("onnxruntime").devices()


def engine_from_onnx(
    model: ModelProto, *, graph: str, precision: Precision, bundle: Path, spec: BuildSpec | None = None
) -> Path:
    if precision == "fp32":
        return graph_path(bundle, graph)
    if precision not in ("fp16", "int8"):
        raise CompileError(f"graph {graph!r}: ONNX Runtime runs fp32, int8 and, on CUDA, fp16, not {precision}")
    same = bundle / ENGINES / f"tensorrt-{precision}" / f"{graph}.onnx"
    if same.exists():  # what TensorRT builds its engine from is that very graph
        return same
    path = engine_path(bundle, "onnxruntime", precision, graph, ".onnx")
    onnx.save(model, path)
    return path
