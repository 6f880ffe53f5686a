"""Reads checkpoints as training code writes them: unwraps the weights and notes what it removed.

DataParallel names tensors ``module.…``, torch.compile ``_orig_mod.…``, Lightning ``model.…``; timm keeps an average of
the weights (EMA) beside them; classifiers over the training classes are left in. No code of a file is ever run.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgevis.provenance import unreadable
from edgevis.state_dict import non_finite
from runtime.errors import WeightsError

# Averages come first: they are what their training reports.
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_ema_state_dict", "ema")
_STATES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "shadow",
)
_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module")
_HEADS = frozenset(
    (
        *("arcface", "classifier", "classifiers", "cls", "cls_head", "fc", "fc_cls", "head", "heads"),
        *("last_linear", "linear_head", "logits", "output", "point_head"),
    )
)
_KINDS = ".safetensors, or what torch.save writes (.pt, .pth, .tar, .ckpt, .bin)"
_SAVE = "save the weights alone: torch.save(model.state_dict(), PATH)"
_DEPTH = 4
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class CheckpointTensors:
    """One set of tensors in a checkpoint.

    Attributes:
        tensors: By name, on the CPU.
        average: The key of the averaged weights that these are; empty for the weights themselves.
    """

    tensors: dict[str, Tensor]
    average: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """Tensors under a model's own names.

    Attributes:
        tensors: By name.
        notes: What was taken off or left out, one sentence each.
        complete: Whether the model's names and these are the same.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]
    complete: bool


def read_states(path: Path) -> tuple[CheckpointTensors, ...]:
    """All sets of weights of a checkpoint, averaged ones first; at least one.

    Raises:
        WeightsError: The file cannot be read without running code, or holds no plain tensors by name.

    The tensors may hold NaN: :func:`check_finite` refuses those that are to be used.
    """
    content = _read(path)
    states = tuple(_states(content))
    if not states:
        raise WeightsError(f"{path} {_complaint(content)}")
    return states


def fit(state: CheckpointTensors, expected: Mapping[str, Tensor], *, source: str) -> Fit:
    """Name a checkpoint's tensors as the model does.

    Args:
        state: Of the checkpoint.
        expected: The model's ``state_dict()``.
        source: The checkpoint, for messages.

    Raises:
        WeightsError: The checkpoint holds the model more than once, such as a student and a teacher; or a tensor of
            the model, a head that is left out included, holds NaN or infinity.
    """
    notes = [f"the averaged weights under {state.average!r} were loaded"] if state.average else []
    tensors = state.tensors
    if not _has(tensors, expected):
        bare = {_unwrapped(name): tensor for name, tensor in tensors.items()}
        if len(bare) == len(tensors):
            tensors = bare
    prefix = _prefix(tensors, expected, source)
    if prefix:
        beside = [name for name in tensors if not name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if beside:
            notes.append(f"left out, beside {prefix!r}: {_listed(beside)}")
    check_finite(tensors, source)
    extra = [name for name in tensors if name not in expected]
    heads = [name for name in extra if _HEADS & set(name.split("."))]
    whole = _has(tensors, expected)
    if whole and heads:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in set(heads)}
        notes.append(f"left out, which the model has not: {_listed(heads)}")
    return Fit(tensors, tuple(notes), whole and len(heads) == len(extra))


def best_fit(path: Path, expected: Mapping[str, Tensor]) -> Fit:
    """The first weights in a checkpoint that fit the model, or the last ones if none fit; under the model's names.

    Raises:
        WeightsError: The file cannot be read, or holds the model more than once, or NaN or infinity.
    """
    passed_over: list[str] = []
    for state in read_states(path):
        fitted = fit(state, expected, source=str(path))
        if fitted.complete:
            break
        passed_over.append(state.average)
    unfit = [f"the averaged weights under {key!r} do not fit and were not loaded" for key in passed_over if key]
    return fitted if state.average else replace(fitted, notes=(*unfit, *fitted.notes))


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if path.suffix == ".safetensors" and not start.startswith(b"version https://git-lfs"):
            return load_file(path)
        _check_kind(path, start)
        if start[8:9] == b"{":
            return load_file(path)
        with torch.serialization.safe_globals(_plain_globals()), warnings.catch_warnings():
            # Since torch 2.14: that a sparse tensor takes long to check. It is refused in any case.
            warnings.filterwarnings("ignore", "Validating sparse tensor invariants", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message goes on for half a page, and advises to trust the file.
        culprit = str(error).partition("Unsupported global: GLOBAL ")[2].split(" ")[0]
        if culprit:
            raise WeightsError(
                f"cannot read {path}: it holds a {culprit} besides tensors, which only code of the file could make; "
                f"where you trust it, {_SAVE}"
            ) from error
        raise WeightsError(f"cannot read {path}: it is damaged, or no checkpoint") from error
    except SafetensorError as error:
        raise unreadable(path, error) from error
    # torch.load reports a broken archive as RuntimeError, a broken pickle as any of the others.
    except (OSError, RuntimeError, ValueError, EOFError, TypeError, KeyError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"cannot read {path}: {reason}") from error


def _check_kind(path: Path, start: bytes) -> None:
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"cannot read {path}: it is a pointer of Git LFS, not the file: run `git lfs pull`")
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"cannot read {path}: it is a web page, not a checkpoint: download it again")
    if start[:4] == b"PK\x03\x04" and not zipfile.is_zipfile(path):
        raise WeightsError(f"cannot read {path}: it is cut short: copy or download it again")
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80" or start[8:9] == b"{":
        return
    if {".pt", ".pth", ".tar", ".ckpt", ".bin"} & set(path.suffixes):
        raise WeightsError(f"cannot read {path}: it is damaged, or no checkpoint")
    raise WeightsError(f"{path} is of an unknown kind; allowed: {_KINDS}")


def _plain_globals() -> list[Any]:
    """Additional classes that torch's restricted reader may create: numbers of NumPy and parsed arguments."""
    scalar = np.float64(0).__reduce__()[0]  # its module was renamed in NumPy 2
    kinds = [np.dtype(kind) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *{type(kind) for kind in kinds},
        argparse.Namespace,
    ]


def _states(content: Any, depth: int = 0, average: str = "") -> Iterator[CheckpointTensors]:
    """Every mapping of tensors by name in the content, averaged ones first."""
    if not isinstance(content, Mapping) or depth == _DEPTH:
        return
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        yield CheckpointTensors(dict(content), average)
        return
    for key in _AVERAGES:
        yield from _states(content.get(key), depth + 1, average or key)
    for key in _STATES:
        nested = tuple(_states(content.get(key), depth + 1, average))
        yield from nested
        if nested:  # a second one would be another model
            return


def _complaint(content: Any) -> str:
    """The error text for content without a mapping of tensors."""
    if not isinstance(content, Mapping):
        return f"holds a {type(content).__name__}; a state dict is needed: tensors by name"
    inner = next((content[key] for key in _STATES if isinstance(content.get(key), Mapping)), content)
    for name, value in inner.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return (
                f"holds no weights: {name!r} is a {type(value).__name__}; a state dict holds tensors by name, at the "
                f"top or under one of {', '.join(_STATES)}"
            )
    return f"holds no tensors; {_SAVE}"


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """WeightsError where a tensor holds NaN or infinity: it names the tensor."""
    if said := non_finite(tensors):
        raise WeightsError(f"{source}: {said}: that training has failed; take an earlier checkpoint")


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _has(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str = "") -> bool:
    return all(prefix + name in tensors for name in expected if not name.endswith(_COUNTER))


def _prefix(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> str:
    """The prefix of the model's names in the checkpoint; empty if the names fit best without one."""
    needed = [name for name in expected if not name.endswith(_COUNTER)]
    if not needed or _has(tensors, expected):
        return ""
    # One of the first names may be missing from the checkpoint.
    prefixes = {"", *(name.removesuffix(key) for key in needed[:8] for name in tensors if name.endswith(f".{key}"))}
    counts = {prefix: sum(prefix + name in tensors for name in needed) for prefix in sorted(prefixes)}
    whole = [prefix for prefix, count in counts.items() if count == len(needed)]
    if len(whole) > 1:
        averages = [prefix for prefix in whole if "ema" in prefix.replace(".", "_").split("_")]
        if len(averages) != 1:
            raise WeightsError(
                f"{source} holds the model {len(whole)} times, under {', '.join(map(repr, whole))}: "
                "save the one to load by itself"
            )
        return averages[0]
    best = max(counts, key=lambda prefix: counts[prefix])
    return best if counts[best] > len(needed) / 2 else ""  # a few equal names are chance: no prefix fits


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
