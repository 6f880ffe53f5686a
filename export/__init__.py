"""``python -m export.build``: a PyTorch model becomes a bundle of engines that are proved to compute the same."""

import runtime  # noqa: F401 - turns the engines' telemetry off before anything else can import one
