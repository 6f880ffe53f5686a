"""Where a bundle shall run. Each file here is one target and its name is the target's; a target is data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from calibration.quantize import Recipe
from runtime.discovery import load_from, names_in
from runtime.errors import ExportError
from runtime.spec import Precision


@dataclass(frozen=True, slots=True)
class Target:
    """What a build makes for one kind of machine.

    Attributes:
        summary: The machines it is for, in one line.
        device: The kind of device in the manifest.
        compilers: The compilers for each precision that the target has; a compiler makes one engine.
        default_precisions: What a build makes unless it is told.
        recipe: How INT8 graphs are quantised for it.
    """

    summary: str
    device: str
    compilers: Mapping[Precision, tuple[str, ...]]
    default_precisions: tuple[Precision, ...]
    recipe: Recipe = field(default_factory=Recipe)


def names() -> tuple[str, ...]:
    """The names of all targets."""
    return names_in(__name__)


def load(name: str) -> Target:
    """The target of that name; ExportError lists the known ones."""
    return cast(Target, load_from(__name__, name, what="target", error=ExportError).TARGET)
