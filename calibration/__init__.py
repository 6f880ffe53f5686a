"""INT8: the images that a build measures itself on, the quantised graph, and what it must look like."""

import runtime  # noqa: F401 - turns the engines' telemetry off before anything else can import one
