"""INT8: the images for calibration and verification, quantised graphs, and the search for float layers."""

import runtime  # noqa: F401 - turns the engines' telemetry off before anything else can import one
