"""The engines' Python packages, imported in one place, with their telemetry off.

The wheels of ONNX Runtime and OpenVINO report to their makers unless they are told not to *before* they are imported:
ONNX Runtime 1.32 keeps a device identifier and a queue of events under HOME and looks up its maker's host within
seconds, OpenVINO 2026.4 keeps a client identifier and does the same while it is imported. A device that recognises
people must do neither unasked. ``import runtime``, which all of edgevis passes first, calls :func:`silence_telemetry`.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib import metadata
from typing import Any

from runtime.common.extras import install_command
from runtime.errors import MissingDependencyError, UnavailableError

VARIABLE = "EDGEVIS_TELEMETRY"
"""The environment variable that leaves the engines' telemetry as their makers set it, where its value is ``1``."""

# Read by ONNX Runtime when its library is loaded. Its function disable_telemetry_events() comes too late: by then the
# files lie in HOME and the host has been looked up (1.32). As an environment variable it reaches child processes too.
_ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
# OpenVINO sends from Python, by a package of its own, and does without where that package is not installed: every
# import of it in OpenVINO and in NNCF stands in a `try … except ImportError`. No variable turns it off.
_OPENVINO = "openvino_telemetry"

_log = logging.getLogger("edgevis.telemetry")


def silence_telemetry() -> None:
    """Turn the engines' telemetry off in this process and in its children, unless :data:`VARIABLE` is ``1``.

    An engine that the program imported before has spoken already. What can still be turned off is, and the log says
    that it was late.
    """
    if os.environ.get(VARIABLE) == "1":
        return
    if os.environ.get(_ONNXRUNTIME) != "1":
        os.environ[_ONNXRUNTIME] = "1"
        engine = sys.modules.get("onnxruntime")
        if engine is not None:
            getattr(engine, "disable_telemetry_events", lambda: None)()
            _log.warning("onnxruntime was imported before edgevis: it may have reported to its maker; %s", _CURE)
    if sys.modules.get(_OPENVINO) is not None:
        _silence_imported()
        _log.warning("openvino was imported before edgevis: it may have reported to its maker; %s", _CURE)
    sys.modules[_OPENVINO] = None  # type: ignore[assignment]  # how Python spells that an import is to fail


_CURE = f"import edgevis first, or set {_ONNXRUNTIME}=1 and uninstall openvino-telemetry"


def import_onnxruntime() -> Any:
    """The package ``onnxruntime``; MissingDependencyError when it is not installed."""
    silence_telemetry()
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime is not installed: pip install onnxruntime") from error
    return onnxruntime


def onnxruntime_conflict() -> str:
    """The command that repairs an environment with both ONNX Runtime packages; empty if only one is installed.

    They share one folder, and the one for processors, installed or upgraded last, hides CUDA in the other one.
    """
    try:
        versions = [f"{name} {metadata.version(name)}" for name in ("onnxruntime", "onnxruntime-gpu")]
    except metadata.PackageNotFoundError:
        return ""
    return (
        f"{' and '.join(versions)} are installed beside each other, and the first can hide CUDA in the second: "
        "pip uninstall --yes onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    )


def import_openvino() -> Any:
    """The package ``openvino``; MissingDependencyError when it is not installed, UnavailableError when it is broken."""
    silence_telemetry()
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(f"openvino is not installed: {install_command('openvino')}") from error
    except Exception as error:  # its telemetry's, such as RuntimeError for a user without a home folder
        raise UnavailableError(f"openvino is installed but cannot be imported: {error}") from error
    return openvino


def _silence_imported() -> None:
    """Withdraw OpenVINO's telemetry consent, which it assumes, in the one object that all its tools send through."""
    kind: Any = getattr(sys.modules[_OPENVINO], "Telemetry", None)
    for name in ("openvino.tools.ovc", "nncf.telemetry.wrapper"):
        sender: Any = getattr(sys.modules.get(name), "telemetry", None)
        if kind is not None and type(sender) is kind:
            sender.consent = False
            sender.force_shutdown(0.0)
