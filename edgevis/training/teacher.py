"""Teachers: trained models that are opened from their weights and run on each batch, but not trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevis import models
from edgevis.provenance import Provenance, read_provenance
from edgevis.training.memory import use_channels_last
from edgevis.training.warm_start import load_matching
from runtime.bundle.bundle import sha256
from runtime.bundle.spec import Deployment
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor


class Teacher:
    """A frozen model in evaluation mode. It is in no optimiser, no checkpoint and no weights file.

    It sees the very views that the student sees, by its own preprocessing: made larger or smaller where its input is.

    Args:
        model: With its weights; it is frozen, and must be on the training's device before it is run.
        deployment: The teacher's.
        student: The student's deployment.
        identity: What a checkpoint and a weights file say of the teacher.
        provenance: What the teacher's weights say; None if nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        deployment: Deployment,
        *,
        student: Deployment,
        identity: Mapping[str, Any],
        provenance: Provenance | None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        use_channels_last(self.model)  # as the batches are
        self.deployment = deployment
        self.identity = identity
        self.provenance = provenance
        same = deployment.preprocess == student.preprocess
        self._preprocess = None if same else Preprocessor(deployment.preprocess)

    def image(self, views: Sequence[Image]) -> Tensor | None:
        """The teacher's input (N, 3, h, w) float32; None where it takes the student's.

        Args:
            views: N images, each (h, w, 3) uint8 BGR.
        """
        return None if self._preprocess is None else torch.from_numpy(self._preprocess(views))


def open_teacher(path: Path | None, name: str | None, *, student: Deployment) -> Teacher:
    """The teacher with these weights, on the CPU.

    Args:
        path: Weights; None for those that ship with the model.
        name: The model; None where the weights say it.
        student: The deployment of the model that learns.

    Raises:
        InputError: The teacher is not known, or a model for another task.
        WeightsError: The file cannot be read, or its tensors are not the model's.
    """
    file = teacher_file(path, name)
    provenance = read_provenance(file)
    entry = models.entry(_model(file, provenance, name))
    if entry.deployment.task != student.task:
        raise InputError(
            f"the teacher {entry.name!r} is a model for the task {entry.deployment.task!r}; allowed: {student.task!r}, "
            "as the model that learns"
        )
    options = {} if provenance is None else dict(provenance.options)
    model = models.module_from(entry, options)
    if provenance is None:
        load_matching(model, file, entry=entry)  # the embedding's tensors are complete
    else:
        models.load_weights(model, file)
    identity = {"model": entry.name, "options": options, "sha256": sha256(file)}
    deployment = models.deployment_of(entry, model)
    return Teacher(model, deployment, student=student, identity=identity, provenance=provenance)


def teacher_file(path: Path | None, name: str | None) -> Path:
    """The teacher's weights: those named, or else those that ship with its model; InputError if there are none."""
    if path is not None:
        return path
    if name is None:
        raise InputError("there is no teacher; allowed: --teacher FILE, or --teacher-model NAME with weights that ship")
    shipped = models.shipped_weights(name)
    if shipped is None:
        raise InputError(f"no weights of {name!r} ship with edgevis; name them: --teacher FILE --teacher-model {name}")
    return shipped


def _model(file: Path, provenance: Provenance | None, name: str | None) -> str:
    if provenance is None and name is None:
        raise InputError(f"{file} does not say of which model it is; add --teacher-model NAME")
    if provenance is not None and name not in (None, provenance.model):
        raise InputError(f"{file} holds weights of {provenance.model!r}, not of {name!r}: leave --teacher-model out")
    return provenance.model if provenance is not None else str(name)
