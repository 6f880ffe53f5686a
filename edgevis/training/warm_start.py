"""Initialises models from existing weights: of another training, perhaps with other heads, or published backbones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgevis.checkpoints import best_fit
from edgevis.models import ModelEntry, check_size, deployment_of, module_from
from edgevis.provenance import read_provenance
from edgevis.state_dict import load_strict
from runtime.errors import InputError, ModelError, WeightsError


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


def load_matching(model: nn.Module, path: Path, *, entry: ModelEntry) -> str:
    """Copy a checkpoint into the model; what it has for other classes is left unchanged.

    Heads over the training classes (``entry.classifier``) and what published weights lack (``entry.added``) begin anew
    where the checkpoint lacks them, or has them for other classes. Of the predictors of classes that the model exports
    (``entry.class_predictors``) the rows of classes with the same name are copied, the others begin anew.

    Args:
        model: Takes the weights.
        path: As for :func:`edgevis.models.load_weights`.
        entry: The model's declaration.

    Returns:
        A sentence about the heads and classes that began anew; empty where there are none.

    Raises:
        WeightsError: The file cannot be read, or tensors other than heads do not fit.
    """
    check_size(path)
    state = model.state_dict()
    tensors = best_fit(path, state).tensors
    notes = []
    heads = (*entry.classifier, *entry.added)
    matching = {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.startswith(heads) if heads else False) or (name in state and state[name].shape == tensor.shape)
    }
    anew = {name: state[name] for name in state if name not in matching and heads and name.startswith(heads)}
    if anew:
        notes.append(f"begun anew: {', '.join(sorted(anew))}")
    predictors = [name for name in state if entry.class_predictors and name.startswith(entry.class_predictors)]
    if predictors and all(name in matching for name in predictors):
        labels = _labels(entry, deployment_of(entry, model).postprocess)
        before = _labels_of_file(entry, path, matching[predictors[0]], rows=len(state[predictors[0]]) // len(labels))
        if labels != before:
            kept = [label for label in labels if label in before]
            rows = [before.index(label) if label in before else None for label in labels]
            matching |= {name: _class_rows(state[name], matching[name], rows, len(before)) for name in predictors}
            new = [label for label in labels if label not in before]
            notes.append(
                f"classes kept: {', '.join(kept) or 'none'}" + (f"; begun anew: {', '.join(new)}" if new else "")
            )
    load_strict(model, {**matching, **anew}, source=str(path), hint=_hint(path, entry))
    return "; ".join(notes)


def _hint(path: Path, entry: ModelEntry) -> str:
    """What to do where weights do not fit."""
    provenance = read_provenance(path)
    if provenance is None:
        return f"Allowed: weights of {entry.name!r}, made with the same --option"
    options = " ".join(f"--option {name}={value}" for name, value in provenance.options.items())
    return (
        f"They are of {provenance.model!r} {options}; allowed: weights of {entry.name!r}, made with the same --option"
    )


def _labels(entry: ModelEntry, postprocess: Mapping[str, object]) -> tuple[str, ...]:
    labels = postprocess.get("labels")
    if not isinstance(labels, Sequence):
        raise ModelError(f"model {entry.name!r} declares class_predictors, but its postprocessing has no labels")
    return tuple(labels)


def _labels_of_file(entry: ModelEntry, path: Path, predictor: Tensor, *, rows: int) -> tuple[str, ...]:
    """The classes of a checkpoint: those that it states, else the model's own for that many.

    Args:
        entry: The model's declaration.
        path: The checkpoint.
        predictor: One of its class predictors.
        rows: The predictor's rows for each class.
    """
    if predictor.ndim == 0 or not len(predictor) or len(predictor) % rows:
        raise WeightsError(f"{path}: a class predictor has shape {tuple(predictor.shape)}; its rows must be {rows} k")
    options: dict[str, object] = {"num_classes": len(predictor) // rows}
    provenance = read_provenance(path)
    if provenance is not None and "labels" in provenance.options:
        options["labels"] = provenance.options["labels"]
    with torch.device("meta"):
        module = module_from(entry, options)
    return _labels(entry, deployment_of(entry, module).postprocess)


def _class_rows(new: Tensor, old: Tensor, rows: Sequence[int | None], before: int) -> Tensor:
    """The predictor with the rows of known classes; where there are several for each class, the class is innermost."""
    result = new.clone().reshape(-1, len(rows), *new.shape[1:])
    source = old.to(new.dtype).reshape(-1, before, *old.shape[1:])
    for row, known in enumerate(rows):
        if known is not None:
            result[:, row] = source[:, known]
    return result.reshape(new.shape)
