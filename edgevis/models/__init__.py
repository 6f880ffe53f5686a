"""The models: one file each, discovered by listing this folder.

    model = create("osnet-x0-25")
    load_weights(model, "osnet_x0_25_msmt17.safetensors")

A model file holds its ``nn.Module``, its ``DEPLOYMENT`` and ``ENTRIES``, a tuple of :class:`ModelEntry`. A new model
is a new file, here or in another package: see :mod:`edgevis.models.lookup`. A graph named X of a deployment is the
module's method ``X``.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import safe_open
from torch import Tensor, nn

from edgevis.checkpoints import best_fit, check_finite, read_states
from edgevis.models.entry import ModelEntry
from edgevis.models.lookup import declared_entries, entry, file_name, names
from edgevis.models.recipe import EpisodeRecipe, FewShotSegmentationRecipe, ReIDRecipe, SegmentationRecipe
from edgevis.provenance import read_provenance
from edgevis.state_dict import load_strict
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.errors import ModelError, WeightsError

__all__ = [
    "Deployment",
    "EpisodeRecipe",
    "FewShotSegmentationRecipe",
    "Graph",
    "ModelEntry",
    "ParameterCounts",
    "Preprocess",
    "ReIDRecipe",
    "SegmentationRecipe",
    "TensorSpec",
    "check_size",
    "create",
    "declared_entries",
    "deployment_of",
    "entry",
    "file_name",
    "load_weights",
    "module_from",
    "names",
    "parameter_counts",
    "parameters",
    "read_weights",
    "shipped_weights",
]

MAX_WEIGHTS_BYTES = 2 << 30
"""The largest checkpoint that :func:`load_weights` opens."""

_log = logging.getLogger("edgevis.weights")

_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def create(name: str, **options: object) -> nn.Module:
    """A new model in evaluation mode with random weights.

    Args:
        name: One of :func:`names`, or ``package.module:NAME``.
        options: Keyword arguments of the model's ``build`` function, such as ``num_identities``.

    Raises:
        UnknownModelError: No model has that name.
        ModelError: The model has no such option, or not with that value.
    """
    return module_from(entry(name), options)


def module_from(declared: ModelEntry, options: Mapping[str, object] = MappingProxyType({})) -> nn.Module:
    """As :func:`create`, from a model's declaration."""
    name, build = declared.name, declared.build
    allowed = inspect.signature(build).parameters
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ModelError(f"model {name!r} has no option {unknown[0]!r}; its options: {', '.join(allowed) or 'none'}")
    try:
        return build(**options).eval()
    except (TypeError, ValueError) as error:
        raise ModelError(f"model {name!r} cannot be built with {dict(options)}: {error}") from error


def deployment_of(declared: ModelEntry, module: nn.Module) -> Deployment:
    """The deployment of a module that :func:`module_from` made with whatever options."""
    return declared.deployment if declared.deploy is None else declared.deploy(module)


def parameters(model: nn.Module) -> int:
    """The number of parameters, trainable and frozen. Batch norm's weight and bias count, its statistics do not."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters of one model.

    Attributes:
        total: All of them.
        trainable: Those that are not frozen.
        without_classifier: All but the heads over the training classes, which no exported graph runs.
    """

    total: int
    trainable: int
    without_classifier: int


def parameter_counts(declared: ModelEntry, module: nn.Module) -> ParameterCounts:
    """The numbers of a module's parameters by their purpose."""
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    heads = sum(size for name, size in sizes.items() if name.startswith(declared.classifier))
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return ParameterCounts(sum(sizes.values()), trainable, sum(sizes.values()) - heads)


def shipped_weights(model: str | ModelEntry, options: Mapping[str, object] = MappingProxyType({})) -> Path | None:
    """The weights of the model that ship with the package; None if there are none for these options.

    Args:
        model: One of :func:`names`, or a declaration.
        options: Those that are asked for, besides the weights' own (see
            :func:`edgevis.provenance.read_provenance`). An option that changes no parameter, such as the side of the
            images, fits.
    """
    declared = entry(model) if isinstance(model, str) else model
    if declared.weights is None:
        return None
    path = _WEIGHTS / declared.weights
    provenance = read_provenance(path)
    try:
        with torch.device("meta"):
            module = module_from(declared, {**({} if provenance is None else provenance.options), **options})
    except ModelError:
        return None
    with safe_open(path, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    return path if shapes == {key: expected[key] for key in expected.keys() - counters} else None


def load_weights(model: nn.Module, path: str | PathLike[str]) -> None:
    """Copy a checkpoint into the model; nothing is copied unless every tensor fits.

    Args:
        path: ``.safetensors``, or what ``torch.save`` writes: a state dict, or a mapping that holds one under a usual
            key such as ``"state_dict"`` or ``"model"``; one that holds averaged weights (EMA) has those loaded.
            Prefixes that wrappers put before the names are taken off, heads that the model has not are left out; the
            log ``edgevis.weights`` says so. It is read without running any code of the file. float16 and bfloat16
            tensors are cast to the model's type. Missing ``num_batches_tracked`` counters are not an error: nothing
            that edgevis builds reads them.

    Raises:
        WeightsError: The file cannot be read, its tensors are not the model's, or hold NaN or infinity, also once they
            are of the model's type; the message names them.
    """
    path = Path(path)
    check_size(path)
    fitted = best_fit(path, model.state_dict())
    hint = "Create the model with the options that the checkpoint was made with"
    load_strict(model, fitted.tensors, source=str(path), hint=hint)
    for note in fitted.notes:
        _log.warning("%s: %s", path.name, note)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU and finite; files and errors as of :func:`load_weights`."""
    check_size(path)
    tensors = read_states(path)[0].tensors
    check_finite(tensors, str(path))
    return tensors


def check_size(path: Path) -> None:
    """Refuse a checkpoint that is missing, or larger than :data:`MAX_WEIGHTS_BYTES`, with a WeightsError."""
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    if size_bytes > MAX_WEIGHTS_BYTES:
        raise WeightsError(f"{path} has {size_bytes} bytes; allowed: at most {MAX_WEIGHTS_BYTES}")
