"""The state of a training in one safetensors file: written atomically, read without running code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn, optim

from edgevis.provenance import KEY, Provenance, metadata, unreadable
from edgevis.state_dict import non_finite
from runtime.common.files import atomic_write
from runtime.common.json_data import from_json, parse_json, to_json
from runtime.errors import InputError, SchemaError, WeightsError

HALVED = "matrices float16, vectors (batch norm, biases) float32; no num_batches_tracked"
"""The description of the format that :func:`write_halved` writes."""


@dataclass(frozen=True, slots=True)
class TrainingSession:
    """One process's part in a training.

    Attributes:
        first_epoch: The first one that it trained, from 1.
        epochs: How many the training was to have in all; may have grown since the session before.
        machine: Architecture and threads, or the GPU's name.
        versions: Of edgevis and torch.
    """

    first_epoch: int
    epochs: int
    machine: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TrainingState:
    """The state that a resumed training needs, besides tensors.

    Attributes:
        identity: The properties that a resumed training must share with the one that wrote the state.
        epochs: The number of finished epochs.
        seconds: The time spent on them.
        best: The best validation figure so far; None before there is one.
        history: One row of figures for each epoch.
        sessions: The times at which it was begun and resumed.
        step: The number of finished steps of the next epoch; all of them where only its validation is missing.
        sums: Of these steps, the sums of the loss's terms, for each process.
    """

    identity: Mapping[str, Any]
    epochs: int
    seconds: float
    best: float | None
    history: tuple[Mapping[str, float], ...]
    sessions: tuple[TrainingSession, ...] = ()
    step: int = 0
    sums: tuple[Mapping[str, float], ...] = ()

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on from."""
        return bool(self.epochs or self.step)

    @property
    def place(self) -> str:
        """Where the training was, in words: ``epoch 2``, or ``epoch 3, step 40``."""
        return f"epoch {self.epochs + 1}, step {self.step}" if self.step else f"epoch {self.epochs}"


def write_weights(path: Path, model: nn.Module, provenance: Provenance) -> None:
    """Write a model's state dict with its provenance; WeightsError, and no file, where a tensor is not finite."""
    _write(path, dict(model.state_dict()), to_json(provenance))


def write_halved(path: Path, tensors: Mapping[str, Tensor], provenance: Provenance | None) -> None:
    """Write weights to ship, see :data:`HALVED`; the folder is created.

    Batch norm's variances leave the range of float16; its counters are dropped, for nothing reads them.

    Raises:
        WeightsError: A tensor is not finite, or leaves that range; nothing is written.
    """
    halved = {
        name: tensor.to(torch.float16 if tensor.ndim > 1 else torch.float32)
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, halved, None if provenance is None else to_json(provenance))


def write_state(
    path: Path, modules: Mapping[str, nn.Module], optimizer: optim.Optimizer, training: TrainingState
) -> None:
    """Write the state that a resumed training needs; WeightsError, and no file, if a tensor is not finite."""
    tensors = {
        f"{name}/{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()
    }
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    _write(path, tensors, {"state": to_json(training), "optimizer": numbers})


def read_training_state(path: Path) -> TrainingState:
    """Read the part of :func:`write_state`'s file that is not tensors."""
    return from_json(TrainingState, _state_text(path)["state"], f"{path.name}: state")


def read_state(path: Path, modules: Mapping[str, nn.Module], optimizer: optim.Optimizer) -> None:
    """Load modules and optimiser from a file of :func:`write_state`.

    Raises:
        WeightsError: The file cannot be read, is of other modules, or holds NaN or infinity.
    """
    numbers = _state_text(path)["optimizer"]
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error
    if said := non_finite(tensors):
        raise WeightsError(f"{path}: {said}: that training has failed; begin it again in another --output")
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in numbers.items()}
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in modules}
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        if part == "optimizer":
            index, _, key = key.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        elif part in parts:
            parts[part][key] = tensor
        else:
            raise WeightsError(f"{path} holds {name!r}, which is no part of this training")
    try:
        for name, module in modules.items():
            module.load_state_dict(parts[name])
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is of another model: {error}") from error


def _state_text(path: Path) -> dict[str, Any]:
    text = metadata(path).get(KEY)
    if text is None:
        raise InputError(f"{path} is no checkpoint of a training")
    data = parse_json(text)
    if isinstance(data, dict) and set(data) == {"progress", "optimizer"}:
        raise SchemaError(
            f"{path} is a checkpoint of edgevis 0.1, whose recipes have other names: finish that training with 0.1, or "
            "begin it again in another --output"
        )
    if not isinstance(data, dict) or set(data) != {"state", "optimizer"}:
        raise SchemaError(f"{path} is no checkpoint of a training, or of another version of edgevis")
    return data


def _write(path: Path, tensors: Mapping[str, Tensor], text: object) -> None:
    if bad := non_finite(tensors):
        raise WeightsError(f"{path} was not written: {bad}")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = None if text is None else {KEY: json.dumps(text, allow_nan=False)}
    data = safetensors.torch.save(plain, said)
    with atomic_write(path) as file:
        file.write(data)
