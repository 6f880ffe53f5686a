"""The optional dependencies of edgevis: whether they are installed, and the command that installs them here."""

from __future__ import annotations

import json
import os
import shlex
from importlib import metadata, util
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from runtime.errors import MissingDependencyError

EXTRAS = MappingProxyType(
    {
        "export": ("torch", "safetensors", "onnx", "onnxscript"),
        "train": ("torch", "safetensors", "lightning_fabric", "torchmetrics"),
    }
)
"""Extra to the modules that a command line cannot do without."""


def missing_modules(extra: str) -> list[str]:
    """The modules of an extra, a key of :data:`EXTRAS`, that are not installed; none is imported."""
    return [module for module in EXTRAS[extra] if util.find_spec(module) is None]


def require_extra(name: str, *, what: str) -> None:
    """Check that the modules of an extra are installed, without importing them.

    Args:
        name: A key of :data:`EXTRAS`.
        what: What needs them, for the message.

    Raises:
        MissingDependencyError: One is not; the message has the command that installs the extra.
    """
    if missing := missing_modules(name):
        raise MissingDependencyError(f"{what} needs {', '.join(missing)}: {install_command(name)}")


def install_command(extra: str) -> str:
    """The ``pip`` command that adds an extra to edgevis as it is installed here.

    From a package index it is ``pip install 'edgevis[NAME]'``; of a checkout or a wheel, which no index need have, it
    names the folder or the file.
    """
    option, source = _installed_from()
    return f"pip install {option}{shlex.quote(f'{source}[{extra}]')}"


def _installed_from() -> tuple[str, str]:
    """The arguments of ``pip install`` for this installation: an option and a path, or the project's name."""
    try:
        text = metadata.distribution("edgevis").read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from its folder, without an installation
        root = Path(__file__).resolve().parents[2]
        return ("-e ", _shown(root)) if (root / "pyproject.toml").is_file() else ("", "edgevis")
    origin = json.loads(text) if text else {}
    address = urlsplit(origin.get("url", ""))
    path = Path(unquote(address.path))
    if address.scheme != "file" or not path.exists():
        return "", "edgevis"
    return "-e " if origin.get("dir_info", {}).get("editable") else "", _shown(path)


def _shown(path: Path) -> str:
    """The path relative to the working folder if it is inside: ``.`` or ``./NAME``."""
    try:
        below = path.relative_to(os.getcwd())
    except (OSError, ValueError):
        return str(path)
    return str(below) if below == Path() else f"./{below}"
