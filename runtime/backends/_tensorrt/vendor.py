"""NVIDIA's packages: TensorRT, and TensorRT-RTX, which has the same interface under another name."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from runtime.common.extras import install_command
from runtime.errors import MissingDependencyError

Flavour = Literal["tensorrt", "tensorrt_rtx"]

# Which modules a flavour may be installed as, the usual one first.
_MODULES: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_NAMES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_ELSEWHERE: dict[Flavour, str] = {"tensorrt": "; on a Jetson it comes with JetPack", "tensorrt_rtx": ""}


def load(flavour: Flavour) -> Any:
    """Import the vendor's module.

    Raises:
        MissingDependencyError: It is not installed, or a library that it needs is not.
    """
    failed: Exception | None = None
    for name in _MODULES[flavour]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            failed = failed or error
        except (ImportError, OSError, FileNotFoundError) as error:  # its own libraries are missing or do not fit
            raise MissingDependencyError(
                f"{_not_installed(flavour)} ({name} is there and does not load: {error})"
            ) from error
    raise MissingDependencyError(_not_installed(flavour)) from failed


def version(flavour: Flavour) -> str:
    """The installed version of the package, such as ``"10.3.0"``.

    Raises:
        MissingDependencyError: It is not installed.
    """
    return str(load(flavour).__version__)


def logger(trt: Any) -> Any:
    """An ``ILogger`` of that module whose ``errors`` is the list of error messages so far; it prints nothing.

    It must live as long as the objects that it was given to.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]  # the bindings carry no types
        """Collects error messages for the exception's text."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def _not_installed(flavour: Flavour) -> str:
    extra = flavour.replace("_", "-")
    return f"{_NAMES[flavour]} is not installed: {install_command(extra)}{_ELSEWHERE[flavour]}"
