"""``NAME.open_set.npz``: what was measured of weights for open-set identification, found by the weights' digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from runtime.common.arrays import Array, read_arrays, write_arrays
from runtime.common.json_data import from_json, parse_json, to_json
from runtime.errors import SchemaError, WeightsError
from runtime.open_set.space import MAX_BYTES, ScoreSpace
from runtime.open_set.statistics import OpenSetStatistics

SUFFIX = ".open_set.npz"
SHIPPED = Path(__file__).parents[1] / "weights" / "open_set"
"""Sidecars of shipped and published weights; each file name has the first 16 digits of the weights' digest."""

_HEADER = "header"


@dataclass(frozen=True, slots=True)
class SidecarHeader:
    """The file's metadata, besides the arrays of a score space.

    Attributes:
        model: The model's name.
        weights_sha256: :func:`weights_digest` of the weights it is for.
        command: How it was made.
        statistics: What was measured.
    """

    model: str
    weights_sha256: str
    command: str
    statistics: OpenSetStatistics


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A file's content: its header, and the arrays of :meth:`runtime.open_set.space.ScoreSpace.arrays`."""

    header: SidecarHeader
    arrays: Mapping[str, Array]


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers by name, dtype, shape and bytes.

    Batch norm's ``num_batches_tracked`` does not count: no output depends on it, and not all checkpoints have it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_sidecar(path: Path, header: SidecarHeader, space: ScoreSpace) -> None:
    """Write the file atomically."""
    text = json.dumps(to_json(header), allow_nan=False).encode()
    write_arrays(path, {_HEADER: np.frombuffer(text, np.uint8), **space.arrays()})


def read_sidecar(path: Path) -> Sidecar:
    """Read the file; WeightsError when it is damaged or of another kind."""
    arrays = read_arrays(path, error=WeightsError, max_bytes=MAX_BYTES)
    text = arrays.pop(_HEADER, None)
    if text is None or text.dtype != np.uint8:
        raise WeightsError(f"{path} is no {SUFFIX} file: it has no header")
    try:
        header = from_json(SidecarHeader, parse_json(text.tobytes()), path.name)
    except SchemaError as error:
        raise WeightsError(f"{path} is damaged: {error}") from error
    return Sidecar(header, arrays)


def sidecar_of(digest: str, checkpoint: Path | None) -> Sidecar | None:
    """The sidecar of the weights with that digest: beside their file, or among the shipped ones; None if there is none.

    Raises:
        WeightsError: The file beside the checkpoint is damaged, or for other weights.
    """
    if checkpoint is not None:
        beside = checkpoint.with_name(checkpoint.stem + SUFFIX)
        if beside.is_file():
            sidecar = read_sidecar(beside)
            if sidecar.header.weights_sha256 != digest:
                raise WeightsError(
                    f"{beside} was measured on other weights ({sidecar.header.weights_sha256[:12]}) than "
                    f"{checkpoint.name} ({digest[:12]}): measure these with python -m edgevis.open_set, or remove it"
                )
            return sidecar
    for path in sorted(SHIPPED.glob(f"*.{digest[:16]}{SUFFIX}")):
        sidecar = read_sidecar(path)
        if sidecar.header.weights_sha256 == digest:
            return sidecar
    return None
