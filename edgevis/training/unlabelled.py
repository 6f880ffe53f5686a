"""Pictures without labels beside the labelled ones: a task that wraps another one and adds their term to its loss.

A new camera's pictures are seldom labelled. The classifiers' answers to them are made sure and kept diverse by
:class:`edgevis.losses.BatchNuclearNormLoss`; batch norms see them, too.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from edgevis.data.files import Files, open_files
from edgevis.data.leakage import Side, SplitCheck
from edgevis.data.rng import draw_at, sample
from edgevis.losses import BatchNuclearNormLoss
from edgevis.models.recipe import ClassifierRecipe, Recipe
from edgevis.training.images import ImageStore
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, DistillableTask, TrainingTask, WrappedTask
from edgevis.training.views import color_jitter, random_horizontal_flip
from runtime.bundle.spec import Deployment
from runtime.errors import InputError, SourceError
from runtime.images.decode import Image
from runtime.images.folders import images_of
from runtime.images.preprocess import Preprocessor

_PART = "unlabelled"
_IMAGE = "unlabelled_image"
# Apart from what tasks draw by the seed.
_DRAW = 64


class UnlabelledTask(WrappedTask):
    """A training task whose model also answers pictures without labels.

    Args:
        task: What the model learns besides; its loss has classifiers.
        files: Where the pictures lie.
        recipe: Their number in a batch, and the weight and form of their term.
        deployment: The model's.
        seed: The training's.
        notes: What they share with the pictures that evaluate, for the report.

    Raises:
        InputError: There are fewer pictures than a batch has.
    """

    def __init__(
        self,
        task: DistillableTask,
        files: Files,
        recipe: ClassifierRecipe,
        deployment: Deployment,
        *,
        seed: int,
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(task)
        self._task, self._recipe, self._seed, self._notes = task, recipe, seed, notes
        self._names = images_of(files.names)
        if len(self._names) < recipe.unlabelled_batch:
            raise InputError(
                f"{files.path} has {len(self._names)} pictures; allowed: at least unlabelled_batch, "
                f"{recipe.unlabelled_batch}"
            )
        self._source = files.path.name
        self._preprocess = Preprocessor(deployment.preprocess)
        self._images = ImageStore(lambda number: self._preprocess.fit(files.image(self._names[number])))

    @property
    def data(self) -> Mapping[str, object]:
        told = {**self._task.data, "unlabelled source": self._source, "unlabelled images": len(self._names)}
        return {**told, "unlabelled leakage": list(self._notes)} if self._notes else told

    def criterion(self) -> nn.Module:
        """The task's criterion with the term of the pictures without labels as a part of it."""
        criterion, recipe = self._task.criterion(), self._recipe
        criterion.add_module(
            _PART,
            BatchNuclearNormLoss(
                weight=recipe.unlabelled_weight, reduction=recipe.unlabelled_reduction, norm=recipe.unlabelled_norm
            ),
        )
        return criterion

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        draw = draw_at(self._seed, _DRAW, epoch, step, rank)
        chosen = sample(draw, range(len(self._names)), self._recipe.unlabelled_batch)
        views = [self._view(number, draw) for number in chosen]
        return {**self._task.batch(epoch, step, rank), _IMAGE: torch.from_numpy(self._preprocess(views))}

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        terms = self._task.loss(model, criterion, batch, epoch)
        outputs = self._task.outputs(model, batch[_IMAGE], logits=True)
        return {**terms, _PART: in_float32(criterion.get_submodule(_PART), *outputs.logits)}

    def _view(self, number: int, draw: random.Random) -> Image:
        image, recipe = self._images[number], self._recipe
        return color_jitter(random_horizontal_flip(image, draw) if recipe.flip else image, draw, strength=recipe.jitter)


def with_unlabelled(
    task: TrainingTask, path: Path, recipe: Recipe, deployment: Deployment, *, seed: int, check: SplitCheck
) -> UnlabelledTask:
    """The task with pictures without labels, from a folder or zip, at any depth.

    Raises:
        InputError: The task or its loss has no classifier, or pictures are among those that evaluate.
        SourceError: The folder cannot be read.
    """
    if not isinstance(task, DistillableTask) or not isinstance(recipe, ClassifierRecipe):
        raise InputError(
            f"the task {deployment.task!r} takes no pictures without labels; allowed: few-shot classification and "
            "person Re-ID. Leave --unlabelled out"
        )
    if recipe.loss not in recipe.HAS_LOGITS:
        raise InputError(
            f"the loss {recipe.loss!r} has no classifier that answers pictures without labels; allowed: "
            f"{', '.join(sorted(recipe.HAS_LOGITS))}, or leave --unlabelled out"
        )
    files = open_files(path)
    if not images_of(files.names):
        raise SourceError(f"{path} holds no pictures")
    mine = Side("unlabelled", files, images_of(files.names))
    notes = check.refuse(path, [leak for side in task.evaluated for leak in check.shared([mine, side])])
    return UnlabelledTask(task, files, recipe, deployment, seed=seed, notes=notes)
