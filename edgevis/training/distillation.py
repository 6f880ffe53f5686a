"""Distillation: a task that wraps another one and adds terms of a teacher's outputs to its loss.

Both see the same augmented images. The terms are those of :class:`edgevis.losses.DistillationLoss`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevis.losses import DistillationLoss
from edgevis.models.recipe import DistillationRecipe, Recipe
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, DistillableTask, TrainingTask, WrappedTask
from edgevis.training.teacher import Teacher
from runtime.bundle.spec import Deployment
from runtime.errors import InputError

_PART = "distillation"
_IMAGE = "teacher_image"


class DistillationTask(WrappedTask):
    """A training task whose model learns by the wrapped task's loss and from a teacher.

    Args:
        task: What the model learns besides.
        teacher: On the training's device.
        recipe: Weights of the teacher's terms.
        student: The deployment of the model that learns.
        seed: The training's.

    Raises:
        InputError: Logits are to be learned, and the teacher's are not of the same classes in the same order.
    """

    def __init__(
        self, task: DistillableTask, teacher: Teacher, recipe: DistillationRecipe, student: Deployment, *, seed: int
    ) -> None:
        super().__init__(task)
        self._task, self._teacher, self._recipe, self._student = task, teacher, recipe, student
        if recipe.distill_logits:
            self._require_same_classes(seed)

    def criterion(self) -> nn.Module:
        """The task's criterion with the distillation as a part of it, so that a learned map is trained and stored."""
        recipe = self._recipe
        criterion = self._task.criterion()
        criterion.add_module(
            _PART,
            DistillationLoss(
                student=_width(self._student),
                teacher=_width(self._teacher.deployment),
                embedding=recipe.distill_embedding,
                logits=recipe.distill_logits,
                temperature=recipe.temperature,
            ),
        )
        return criterion

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        views = self._task.views(epoch, step, rank)
        image = self._teacher.image(views.images)
        return {**self._task.tensors(views), **({} if image is None else {_IMAGE: image})}

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        student = self._task.outputs(model, batch["image"], logits=True)
        terms = self._task.terms(criterion, student, batch, epoch)
        with torch.no_grad():
            image = batch.get(_IMAGE, batch["image"])
            # Without a weight for logits the teacher may have no classifier.
            taught = self._task.outputs(self._teacher.model, image, logits=self._recipe.distill_logits > 0)
        loss = criterion.get_submodule(_PART)
        rows = (student.embedding, student.logits, taught.embedding, taught.logits)
        return {**terms, **in_float32(loss, *rows)}

    def _require_same_classes(self, seed: int) -> None:
        """Require equal data and seed, which determine the classes; class names are not stored."""
        weight, provenance = self._recipe.distill_logits, self._teacher.provenance
        if provenance is None:
            raise InputError(
                f"recipe: distill_logits is {weight:g}, but the teacher's weights do not say on which classes it was "
                "trained; allowed: weights that edgevis.train wrote, or distill_logits=0"
            )
        task = self._task
        pairs: dict[str, tuple[object, object]] = {"seed": (provenance.seed, seed)}
        pairs |= {f"data's {name!r}": (provenance.data.get(name), value) for name, value in task.data.items()}
        pairs |= {f"option {name!r}": (provenance.options.get(name), n) for name, n in task.model_options.items()}
        for name, (taught, learned) in pairs.items():
            if taught != learned:
                raise InputError(
                    f"recipe: distill_logits is {weight:g}, but the teacher was trained on other classes: its {name} "
                    f"is {taught!r}, this training's is {learned!r}; allowed: a teacher of the same data and seed, or "
                    "distill_logits=0"
                )


def check_distillable(recipe: Recipe, task: str) -> DistillationRecipe:
    """The recipe, checked to support a teacher.

    Args:
        recipe: How the student learns.
        task: The student's :attr:`runtime.bundle.spec.Deployment.task`, for the message.

    Raises:
        InputError: The task does not learn from a teacher, all weights of the teacher's terms are 0, or logits are to
            be learned for a loss that has none.
    """
    if not isinstance(recipe, DistillationRecipe):
        raise InputError(
            f"the task {task!r} does not learn from a teacher; allowed: few-shot classification, person Re-ID and "
            "detection. Leave --teacher and --teacher-model out"
        )
    if not (recipe.distill_embedding or recipe.distill_logits):
        raise InputError(
            "recipe: distill_embedding and distill_logits are both 0, so that a teacher teaches nothing; allowed: one "
            "of them above 0"
        )
    if recipe.distill_logits and recipe.loss not in recipe.HAS_LOGITS:
        raise InputError(
            f"recipe: distill_logits is {recipe.distill_logits:g} with the loss {recipe.loss!r}, which has no logits; "
            f"allowed: the losses {', '.join(sorted(recipe.HAS_LOGITS))}, or distill_logits=0"
        )
    return recipe


def with_teacher(
    task: TrainingTask, teacher: Teacher, recipe: DistillationRecipe, student: Deployment, *, seed: int
) -> DistillationTask:
    """The task with a teacher; InputError for a task whose model makes no embedding."""
    if not isinstance(task, DistillableTask):
        raise InputError(f"the task {student.task!r} does not learn from a teacher: leave --teacher out")
    return DistillationTask(task, teacher, recipe, student, seed=seed)


def _width(deployment: Deployment) -> int:
    """The width of the embedding, which is what the first graph makes."""
    return int(deployment.graphs[0].outputs[0].shape[-1])
