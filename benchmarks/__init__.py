"""Measurements: parameters, latency and accuracy, as tables and pictures. Not packaged."""

import runtime  # noqa: F401 - turns the engines' telemetry off before anything else can import one
