"""Distillation of detectors: a task that adds a teacher's raw maps to the loss of the task ``detect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgevis.losses import ObjectnessDistillationLoss
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, TrainingTask, WrappedTask
from edgevis.training.teacher import Teacher
from runtime.bundle.spec import Deployment
from runtime.errors import InputError
from runtime.tasks.detect import settings_from

_PART = "distillation"


class DetectionDistillationTask(WrappedTask):
    """The task ``detect`` whose model learns also the raw maps of a teacher with the same levels.

    The teacher sees the student's batches as they are: degraded and augmented, at the student's size.

    Args:
        task: What the model learns besides; see :class:`edgevis.training.task.TrainingTask`.
        teacher: On the training's device; it has the student's classes, and perhaps others.
        weight: Of the teacher's terms.
        student: The deployment of the model that learns.

    Raises:
        InputError: The teacher lacks a class, prepares images in another way, or has no raw maps of this form.
    """

    def __init__(self, task: TrainingTask, teacher: Teacher, *, weight: float, student: Deployment) -> None:
        super().__init__(task)
        self._task, self._teacher, self._weight = task, teacher, weight
        own, taught = student.preprocess, teacher.deployment.preprocess
        if replace(taught, height=own.height, width=own.width) != own:
            raise InputError("the teacher prepares images in another way than the model; allowed: another size only")
        known = settings_from(teacher.deployment.postprocess).labels
        labels = str(task.model_options["labels"]).split(",")  # of the data, which the deployment does not know yet
        lacking = [label for label in labels if label not in known]
        if lacking:
            raise InputError(f"the teacher knows no {lacking[0]!r}; its classes: {', '.join(known[:10])}")
        self._columns = torch.tensor([*range(5), *(5 + known.index(label) for label in labels)])

    def criterion(self) -> nn.Module:
        criterion = self._task.criterion()
        criterion.add_module(_PART, ObjectnessDistillationLoss())
        return criterion

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        return self._task.batch(epoch, step, rank)

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        heads: Any = model
        maps = heads.heads(batch["image"])
        terms = self._task.loss(_Computed(maps), criterion, batch, epoch)
        with torch.no_grad():
            teacher: Any = self._teacher.model
            taught = _rows(teacher.heads(batch["image"]))[..., self._columns.to(batch["image"].device)]
        more = in_float32(criterion.get_submodule(_PART), _rows(maps), taught)
        return {**terms, **{name: self._weight * value for name, value in more.items()}}


class _Computed(nn.Module):
    """A model whose raw maps are known already, so that they are not computed twice."""

    def __init__(self, maps: Sequence[Tensor]) -> None:
        super().__init__()
        self._maps = maps

    def heads(self, image: Tensor) -> Sequence[Tensor]:
        return self._maps


def _rows(maps: Sequence[Tensor]) -> Tensor:
    """(B, A, K): the maps of all levels, cells row by row."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
