"""ONNX Runtime as calibration uses it: every graph that ONNX can express, on one thread, silently."""

from __future__ import annotations

from typing import Any

from onnx import ModelProto

from runtime.errors import MissingDependencyError


def open_session(model: ModelProto) -> Any:
    """An ``onnxruntime.InferenceSession`` of the model.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime is not installed: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
