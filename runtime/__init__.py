"""The torch-free inference layer of edgevis. Import :mod:`edgevis`, not this package."""

from runtime.common.vendors import silence_telemetry

# `runtime` is a generic name: edgevis/__init__.py looks for this mark to tell ours from another one on the path.
OWNER = "edgevis"

# Here, because every entrance passes it, the library's and the command lines', before it imports an engine.
silence_telemetry()
