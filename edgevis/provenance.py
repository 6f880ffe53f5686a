"""The metadata of a weights file: the model, its options, and how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from runtime.common.json_data import from_json, parse_json
from runtime.errors import WeightsError

KEY = "edgevis"
"""The name of our entry in a safetensors file's metadata: JSON text."""

_MAX_BYTES = 8 << 30


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of weights; stored in the metadata of every weights file that a training writes.

    Attributes:
        model: Its name in :mod:`edgevis.models`.
        options: What it was created with.
        recipe: All values of the recipe.
        data: What it was trained on.
        seed: Of weights and batches.
        epoch: How many epochs it has seen.
        teacher: What it learned from besides: model, options and SHA-256 of the weights; None if from none.
    """

    model: str
    options: Mapping[str, Any]
    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    seed: int
    epoch: int
    teacher: Mapping[str, Any] | None = None


def read_provenance(path: Path) -> Provenance | None:
    """The provenance stored in a weights file; None if there is none.

    Raises:
        WeightsError: The file cannot be read.
        SchemaError: What it says is not in our form.
    """
    text = metadata(path).get(KEY) if path.suffix == ".safetensors" else None
    return None if text is None else from_json(Provenance, parse_json(text), f"{path.name}: provenance")


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        WeightsError: It cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise WeightsError(f"{path} has {path.stat().st_size} bytes; allowed: at most {_MAX_BYTES}")
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError | SafetensorError) -> WeightsError:
    """The error about a safetensors file that the system or safetensors does not read."""
    if isinstance(error, OSError):
        return WeightsError(f"cannot read {path}: {error}")
    return WeightsError(
        f"cannot read {path}: it is cut short, damaged, or no safetensors file ({error}): copy or download it again"
    )
