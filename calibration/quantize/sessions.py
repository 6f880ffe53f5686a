"""ONNX Runtime as calibration uses it: every graph that ONNX can express, on one thread, silently."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto

from runtime.common.vendors import import_onnxruntime


def open_session(model: ModelProto) -> Any:
    """An ``onnxruntime.InferenceSession`` of the model.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
