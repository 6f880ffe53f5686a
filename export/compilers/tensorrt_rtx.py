"""TensorRT-RTX plans, built ahead of time; no GPU is needed."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from export.compilers import engine_path
from runtime.backends._tensorrt import vendor
from runtime.backends._tensorrt.backend import PLAN
from runtime.backends._tensorrt.compiler import build_engine
from runtime.backends._tensorrt.spec import BuildSpec
from runtime.bundle.spec import Precision
from runtime.errors import CompileError


def check() -> None:
    vendor.load("tensorrt_rtx")


def engine_from_onnx(
    model: ModelProto, *, graph: str, precision: Precision, bundle: Path, spec: BuildSpec | None = None
) -> Path:
    if spec is None:
        raise CompileError(f"graph {graph!r}: TensorRT-RTX needs the shapes that its engine shall take")
    try:
        built = build_engine(model.SerializeToString(), spec, flavour="tensorrt_rtx")
    except CompileError as error:
        raise CompileError(f"graph {graph!r} in {precision}: {error}") from error
    path = engine_path(bundle, "tensorrt_rtx", precision, graph, PLAN)
    path.write_bytes(built.plan)
    return path
