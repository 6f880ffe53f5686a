"""NVIDIA's packages: TensorRT, and TensorRT-RTX, which has the same interface under another name."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from runtime.backends._tensorrt.versions import check_version
from runtime.common.extras import install_command
from runtime.errors import MissingDependencyError, UnavailableError

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
        UnavailableError: It is installed, and cannot be imported or is a version that cannot work.
    """
    failed: Exception | None = None
    for name in _MODULES[flavour]:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                failed = failed or error
                continue
            # Its own libraries are missing or do not fit.
            raise MissingDependencyError(
                f"{_not_installed(flavour)} ({name} is there and does not load: {error})"
            ) from error
        except Exception as error:  # what a package runs while it is imported may raise anything
            raise UnavailableError(
                f"{_NAMES[flavour]} is installed but cannot be imported: {type(error).__name__}: {error}; "
                "install it again"
            ) from error
        if flavour == "tensorrt":
            check_version(str(getattr(module, "__version__", "of no version")))
        return module
    raise MissingDependencyError(_not_installed(flavour)) from failed


def version(flavour: Flavour) -> str:
    """The installed version of the package, such as ``"10.3.0"``.

    Raises:
        MissingDependencyError, UnavailableError: See :func:`load`.
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
