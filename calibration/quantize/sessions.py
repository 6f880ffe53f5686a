"""ONNX graphs in ONNX Runtime on the processor, for measurements during a build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx import ModelProto

from runtime.common.vendors import import_onnxruntime


def open_session(
    model: ModelProto | ir.Model | Path | bytes,
    *,
    exact: bool = False,
    threads: int = 0,
    disabled_optimizers: Sequence[str] = (),
) -> Any:
    """An ``onnxruntime.InferenceSession`` that logs errors only.

    Args:
        model: The graph, its serialised bytes, or the path of its file.
        exact: Run every node as the graph says it, nothing fused: Q/DQ then round between float operations.
        threads: Threads of one operator; 0 leaves the number to ONNX Runtime.
        disabled_optimizers: ONNX Runtime's names of graph optimisations that are left out.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: they come back as exceptions
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if isinstance(model, ir.Model):
        model = proto_from_ir(model)
    if isinstance(model, ModelProto):
        model = model.SerializeToString()
    return onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(disabled_optimizers),
    )


def proto_from_ir(model: ir.Model) -> ModelProto:
    """The model as protobuf, without the inferred shapes of its inner tensors."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto
