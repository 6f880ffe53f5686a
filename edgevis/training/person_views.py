"""Training tasks on views of persons without labels: what they share is the data and the validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from edgevis.data.person_cutouts import PersonSources, read_person_sources
from edgevis.models.unlabelled_recipe import BlockwiseDistillationRecipe, SimilarityDistillationRecipe
from edgevis.training.camera_views import camera_view
from edgevis.training.embed import embeddings, recognised
from edgevis.training.task import Batch, Evaluation, MetricValue
from edgevis.training.teacher import Teacher
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor

_HELD_OUT_VIEWS = 2
_HELD_OUT_DRAW = 1 << 31
_IMAGE = "teacher_image"

R = TypeVar("R", bound=BlockwiseDistillationRecipe | SimilarityDistillationRecipe)
T = TypeVar("T", bound="PersonViewsTask[Any]")


class PersonViewsTask(ABC, Generic[R]):
    """The parts of a :class:`edgevis.training.task.TrainingTask` that learns a teacher's outputs for views of persons.

    Args:
        sources: Persons to learn from, and persons held out.
        recipe: How the student learns.
        deployment: The student's.
        teacher: On the training's device; None evaluates only.
        data: The data's name.
        seed: Of the views.
    """

    def __init__(
        self,
        sources: PersonSources,
        recipe: R,
        deployment: Deployment,
        teacher: Teacher | None,
        *,
        data: str,
        seed: int,
    ) -> None:
        self._recipe, self._teacher, self._seed, self._name = recipe, teacher, seed, data
        self._sources, self._persons = sources, (*sources.photos, *sources.video)
        self._steps = recipe.steps_per_epoch or max(1, len(self._persons) // recipe.batch)
        self._preprocess = Preprocessor(deployment.preprocess)
        self._held_out_views: list[Image] | None = None
        self._taught_rows: Array | None = None

    @classmethod
    def read(
        cls: type[T],
        data: Path,
        recipe: BlockwiseDistillationRecipe | SimilarityDistillationRecipe,
        deployment: Deployment,
        teacher: Teacher | None,
        *,
        seed: int,
    ) -> T:
        """The task on the persons of Clothing Co-Parsing's zip, or of a folder with this zip and videos.

        Raises:
            InputError: The recipe trains and there is no teacher, or the student cannot learn from it.
            SourceError: The data cannot be read.
        """
        if teacher is None and recipe.epochs:
            raise InputError("this recipe learns from a teacher alone; add --teacher FILE, or --teacher-model NAME")
        if teacher is not None:
            cls.check_teacher(teacher.model)
        return cls(read_person_sources(data), recipe, deployment, teacher, data=data.name, seed=seed)

    @staticmethod
    def check_teacher(model: nn.Module) -> None:
        """Raise InputError for a model that cannot teach; any model with embeddings can."""

    @property
    def model_options(self) -> Mapping[str, int | str]:
        return {}

    @property
    def data(self) -> Mapping[str, object]:
        return {
            "source": self._name,
            "persons in photographs": len(self._sources.photos),
            "persons in videos": len(self._sources.video),
            "persons held out": len(self._sources.held_out),
        }

    @property
    def evaluation_images(self) -> tuple[int, int]:
        """See :class:`edgevis.training.remaining.CountedEvaluations`."""
        views = _HELD_OUT_VIEWS * len(self._sources.held_out)
        return views, views

    @property
    def steps_per_epoch(self) -> int:
        return self._steps

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        return self.tensors(self.views(self.draw(epoch, step, rank)))

    def draw(self, epoch: int, step: int, rank: int) -> np.random.Generator:
        """The random numbers of a step."""
        number = epoch * self.steps_per_epoch + step
        return np.random.default_rng((self._seed, number, rank) if rank else (self._seed, number))

    def tensors(self, views: Sequence[Image]) -> Batch:
        """The student's ``image`` (N, 3, h, w) float32, and the teacher's where that is another one."""
        image = None if self._teacher is None else self._teacher.image(views)
        return {"image": torch.from_numpy(self._preprocess(views)), **({} if image is None else {_IMAGE: image})}

    @abstractmethod
    def criterion(self) -> nn.Module:
        """The loss's own parameters."""

    @abstractmethod
    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The terms of the loss by name."""

    @abstractmethod
    def views(self, rng: np.random.Generator) -> list[Image]:
        """The augmented images of one step, each (256, 128, 3) uint8 BGR."""

    def drawn(self, count: int, rng: np.random.Generator) -> list[int]:
        """Numbers of so many persons, different ones where there are enough."""
        persons = len(self._persons)
        enough = count <= persons
        chosen = rng.permutation(persons)[:count] if enough else rng.integers(persons, size=count)
        return [int(index) for index in chosen]

    def view(self, index: int, rng: np.random.Generator, *, same_clothes: bool = False) -> Image:
        """A view of one of the persons to learn from."""
        return camera_view(self._persons, index, rng, same_clothes=same_clothes)

    def teacher_input(self, batch: Batch) -> Tensor:
        """The teacher's image tensor of a batch."""
        return batch.get(_IMAGE, batch["image"])

    def validate(self, model: nn.Module) -> Evaluation | None:
        """On persons held out: rank-1 between two views of each person; see :meth:`taught_figures`."""
        device = next(model.parameters()).device
        rows = self._rows(cast(Any, model).embed, device)
        figures = {"rank-1": _rank1(rows, len(self._sources.held_out))}
        if self._teacher is not None:
            if self._taught_rows is None:
                self._taught_rows = self._rows(cast(Any, self._teacher.model).embed, device, self._teacher)
            likeness = self.likeness(rows, self._taught_rows)
            taught = _rank1(self._taught_rows, len(self._sources.held_out))
            figures = {**likeness, **figures, "teacher's rank-1": taught}
        return Evaluation("persons held out, two views each", figures)

    def test(self, model: nn.Module) -> Evaluation | None:
        return self.validate(model)

    @abstractmethod
    def likeness(self, rows: Array, taught: Array) -> dict[str, MetricValue]:
        """How much the student's unit rows (2 N, d), the second views after the first, are like the teacher's."""

    def _rows(self, embed: Any, device: torch.device, teacher: Teacher | None = None) -> Array:
        """(2 N, d) float32 unit rows: the first view of each person held out, then the second."""
        if self._held_out_views is None:
            held_out = self._sources.held_out
            rng = np.random.default_rng((self._seed, _HELD_OUT_DRAW))
            order = [*range(len(held_out))] * _HELD_OUT_VIEWS
            self._held_out_views = [camera_view(held_out, index, rng, same_clothes=True) for index in order]
        preprocess = self._preprocess if teacher is None else Preprocessor(teacher.deployment.preprocess)
        return embeddings(embed, self._held_out_views, preprocess, device)


def per_person(values: Sequence[float] | Array) -> MetricValue:
    """The mean of a value for each of 2 N views, with a sample for each of N persons."""
    means = np.asarray(values, np.float64).reshape(_HELD_OUT_VIEWS, -1).mean(0)
    return MetricValue.mean_of(means.tolist())


def _rank1(rows: Array, count: int) -> MetricValue:
    """The share of first views whose nearest second view is of the same person."""
    return MetricValue.mean_of(recognised(rows[:count], rows[count:]))
