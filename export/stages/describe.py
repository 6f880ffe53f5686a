"""Assemble the bundle's manifest."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib import metadata

import cv2

from edgevis import __version__
from export.request import BuildProgress
from export.state import BuildState
from runtime.bundle.identity import encoder_identity
from runtime.bundle.manifest import Manifest
from runtime.common.machine import machine_name

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy", "tensorrt-rtx-cu13-libs")


def run(state: BuildState, progress: BuildProgress) -> None:
    """Set ``manifest``; its list of files is filled in when it is written."""
    request = state.request
    state.manifest = Manifest(
        name=request.output.stem,
        model=request.name,
        target=request.target,
        deployment=state.deployment,
        encoder_identity=encoder_identity(request.name, state.deployment, state.weights.sha256),
        weights=state.weights,
        parameters=state.parameters,
        engines=state.engines,
        files={},
        calibration=state.calibration,
        candidates=state.candidates,
        options=dict(request.options),
        tools=_tools(),
        machine=machine_name(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _tools() -> dict[str, str]:
    """The versions of the installed tools that the build used."""
    versions = {"edgevis": __version__, "python": platform.python_version(), "opencv": cv2.__version__}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return dict(sorted(versions.items()))
