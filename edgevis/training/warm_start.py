"""Initialises models from existing weights: of another training, perhaps with other heads, or published backbones."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgevis.checkpoints import best_fit
from edgevis.models import check_size
from edgevis.state_dict import load_strict
from runtime.errors import InputError


def load_backbone(model: nn.Module, path: Path) -> None:
    """Copy published weights into the model's backbone; tensors that it lacks, such as a classifier, are skipped.

    The backbone is ``model.backbone``. Where several modules begin with parts of the same weights, ``model.backbones``
    are these modules, each with the published names.

    Raises:
        InputError: The model has no backbone.
        WeightsError: The file cannot be read, or lacks tensors of the backbone.
    """
    backbones = getattr(model, "backbones", (getattr(model, "backbone", None),))
    for backbone in backbones:
        if not isinstance(backbone, nn.Module):
            raise InputError(f"a {type(model).__name__} has no backbone; --weights takes weights of the whole model")
        check_size(path)
        state = backbone.state_dict()
        tensors = best_fit(path, state).tensors
        load_strict(backbone, {name: tensors[name] for name in state if name in tensors}, source=str(path))


def load_matching(model: nn.Module, path: Path, *, heads: tuple[str, ...]) -> str:
    """Copy a checkpoint into the model; heads that it lacks, or has for other classes, are left unchanged.

    Args:
        model: Takes the weights.
        path: As for :func:`edgevis.models.load_weights`.
        heads: Prefixes of the names of the heads over training classes.

    Returns:
        A sentence about the heads that began anew; empty where there are none.

    Raises:
        WeightsError: The file cannot be read, or tensors other than heads do not fit.
    """
    check_size(path)
    state = model.state_dict()
    tensors = best_fit(path, state).tensors
    matching = {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.startswith(heads) if heads else False) or (name in state and state[name].shape == tensor.shape)
    }
    anew = {name: state[name] for name in state if name not in matching and heads and name.startswith(heads)}
    load_strict(model, {**matching, **anew}, source=str(path))
    return f"begun anew: {', '.join(sorted(anew))}" if anew else ""
