"""Build a bundle from a PyTorch model: export, compile, quantise, measure parity (as `python -m export.build`)."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from runtime.common.extras import require_extra


def add_arguments(parser: argparse.ArgumentParser) -> None:
    require_extra("export", what="edgevis build")
    _export().add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    return int(_export().run(arguments))


def _export() -> Any:
    # By its name: edgevis may not depend on export, and where export is used PyTorch is installed.
    return importlib.import_module("export.build")
