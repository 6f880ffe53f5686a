"""A trained model that another one learns from: opened from its weights, asked for each batch, never trained itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevis import models
from edgevis.losses import DistillationLoss
from edgevis.models.recipe import DistillationRecipe, Recipe
from edgevis.provenance import Provenance, read_provenance
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, TrainingTask
from edgevis.training.warm_start import load_matching
from runtime.bundle.bundle import sha256
from runtime.bundle.spec import Deployment
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor

Answers = Callable[[Any, Tensor], tuple[Tensor, Sequence[Tensor]]]
"""How a task asks a model: image (B, 3, h, w) -> embedding (B, d) and the logits (B, classes) of each classifier."""

_PART = "distillation"
_IMAGE = "teacher_image"


class Teacher:
    """Frozen and in evaluation mode. It is in no optimiser, no checkpoint and no weights file.

    It sees the very views that the student sees, by its own preprocessing: made larger or smaller where its input is.

    Args:
        model: With its weights; it is frozen, and must be on the training's device before :meth:`terms`.
        deployment: Its own.
        student: The student's.
        recipe: Weights of the terms.
        identity: What a checkpoint and a weights file say of it.
        provenance: What its own weights say; None if nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        deployment: Deployment,
        *,
        student: Deployment,
        recipe: DistillationRecipe,
        identity: Mapping[str, Any],
        provenance: Provenance | None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the batches are
        self.identity = identity
        self._origin = provenance
        self._deployment, self._student, self._recipe = deployment, student, recipe
        same = deployment.preprocess == student.preprocess
        self._preprocess = None if same else Preprocessor(deployment.preprocess)

    def require_classes(self, task: TrainingTask, seed: int) -> None:
        """InputError if logits are to be learned and the teacher's are not of the same classes in the same order.

        Which classes a training has follows from its data and its seed; their names are not stored.
        """
        weight, provenance = self._recipe.distill_logits, self._origin
        if not weight:
            return
        if provenance is None:
            raise InputError(
                f"recipe: distill_logits is {weight:g}, but the teacher's weights do not say on which classes it was "
                "trained; allowed: weights that edgevis.train wrote, or distill_logits=0"
            )
        pairs: dict[str, tuple[object, object]] = {"seed": (provenance.seed, seed)}
        pairs |= {f"data's {name!r}": (provenance.data.get(name), value) for name, value in task.data.items()}
        pairs |= {f"option {name!r}": (provenance.options.get(name), n) for name, n in task.model_options.items()}
        for name, (its, own) in pairs.items():
            if its != own:
                raise InputError(
                    f"recipe: distill_logits is {weight:g}, but the teacher was trained on other classes: its {name} "
                    f"is {its!r}, this training's is {own!r}; allowed: a teacher of the same data and seed, or "
                    "distill_logits=0"
                )

    def added_to(self, criterion: nn.Module) -> nn.Module:
        """A task's criterion with the distillation as a part of it, so that what it learns is trained and stored."""
        recipe = self._recipe
        loss = DistillationLoss(
            student=_width(self._student),
            teacher=_width(self._deployment),
            embedding=recipe.distill_embedding,
            logits=recipe.distill_logits,
            temperature=recipe.temperature,
        )
        criterion.add_module(_PART, loss)
        return criterion

    def batch(self, views: Sequence[Image]) -> Batch:
        """What a batch needs for the teacher besides; nothing where it takes the student's tensor.

        Args:
            views: Each (h, w, 3) uint8 BGR.
        """
        return {} if self._preprocess is None else {_IMAGE: torch.from_numpy(self._preprocess(views))}

    def terms(
        self, criterion: nn.Module, batch: Batch, embedding: Tensor, logits: Sequence[Tensor], answers: Answers
    ) -> dict[str, Tensor]:
        """The terms of the loss that the teacher adds.

        Args:
            criterion: Of :meth:`added_to`.
            batch: With what :meth:`batch` gave.
            embedding: (B, d), the student's.
            logits: (B, classes) of each of the student's classifiers; empty where it has none.
            answers: How to ask the teacher for the same.
        """
        image = batch.get(_IMAGE, batch["image"])
        with torch.no_grad():
            if self._recipe.distill_logits:
                wanted, wanted_logits = answers(self.model, image)
            else:  # it may have no classifier
                wanted, wanted_logits = getattr(self.model, self._deployment.graphs[0].name)(image), ()
        loss = criterion.get_submodule(_PART)
        found: dict[str, Tensor] = in_float32(loss, embedding, logits, wanted, wanted_logits)
        return found


def open_teacher(path: Path | None, name: str | None, *, student: Deployment, recipe: Recipe) -> Teacher:
    """The teacher that the weights are of, on the CPU.

    Args:
        path: Weights; None for those that ship with the model.
        name: The model; None where the weights say it.
        student: The deployment of the model that learns.
        recipe: How it learns.

    Raises:
        InputError: The recipe has no use for a teacher, or this one is not known or of another task.
        WeightsError: The file cannot be read, or its tensors are not the model's.
    """
    if not isinstance(recipe, DistillationRecipe):
        raise InputError(
            f"the task {student.task!r} does not learn from a teacher; allowed: few-shot classification and person "
            "Re-ID. Leave --teacher and --teacher-model out"
        )
    if not (recipe.distill_embedding or recipe.distill_logits):
        raise InputError(
            "recipe: distill_embedding and distill_logits are both 0, so that a teacher teaches nothing; allowed: one "
            "of them above 0"
        )
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
        load_matching(model, file, heads=entry.classifier)  # of the embedding nothing is missing
    else:
        models.load_weights(model, file)
    identity = {"model": entry.name, "options": options, "sha256": sha256(file)}
    deployment = models.deployment_of(entry, model)
    return Teacher(model, deployment, student=student, recipe=recipe, identity=identity, provenance=provenance)


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


def _width(deployment: Deployment) -> int:
    """Of the embedding, which is what the first graph makes."""
    return int(deployment.graphs[0].outputs[0].shape[-1])
