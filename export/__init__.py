"""``python -m export.build``: builds a bundle of measured engines from a PyTorch model or a float32 ONNX file."""

import runtime  # noqa: F401 - turns the engines' telemetry off before anything else can import one
