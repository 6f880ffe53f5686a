"""What a task brings to training: its data, its loss, its measure. Each file in ``edgevis/training/tasks/`` is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor, nn

from edgevis.data.leakage import SplitCheck
from edgevis.metrics.interval import half_width
from edgevis.models.recipe import Recipe
from runtime.bundle.spec import Deployment
from runtime.images.decode import Image

if TYPE_CHECKING:
    from edgevis.training.teacher import Teacher

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One figure of an evaluation.

    Attributes:
        value: The figure.
        samples: A (pseudo-)value for each unit that was measured - an episode, a person, a volume - in an order that
            every model's evaluation on the same data shares; their mean is the figure. See
            :mod:`edgevis.metrics.jackknife`. Empty where nobody asks how sure the figure is.
    """

    value: float
    samples: tuple[float, ...] = ()

    @property
    def half_width95(self) -> float | None:
        """Of the 95 % interval; None with fewer than two samples."""
        return half_width(np.asarray(self.samples)) if len(self.samples) > 1 else None

    def __str__(self) -> str:
        return f"{self.value:.4f}" + ("" if self.half_width95 is None else f" ± {self.half_width95:.4f}")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a trained model does on data that it was not trained on.

    Attributes:
        split: Which data, in a few words.
        figures: By name, such as ``"rank-1"``; the first is the one that counts.
        pictures: By name, BGR, to look at.
    """

    split: str
    figures: Mapping[str, MetricValue]
    pictures: Mapping[str, Image] = field(default_factory=dict)


class TrainingTask(Protocol):
    """Data, loss and measure of one training.

    A batch depends on its epoch, its step and the process's rank only, and on the seed: so a run that goes on after a
    crash sees what an unbroken one sees, and every process of several draws its own.
    """

    @property
    def model_options(self) -> Mapping[str, int | str]:
        """What the model must be created with to fit the data, such as the number of classes."""
        ...

    @property
    def data(self) -> Mapping[str, object]:
        """What is trained and evaluated on, in numbers and names, for the report."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Of one pass over the training data, or what the recipe says."""
        ...

    def criterion(self) -> nn.Module:
        """What of the loss has parameters; they are trained with the model's."""
        ...

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        """The tensors of one step, on the CPU."""
        ...

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The terms by name; their sum is minimised."""
        ...

    def validate(self, model: nn.Module) -> Evaluation | None:
        """On data set aside from the training data; None where there are none. The first figure chooses the best."""
        ...

    def test(self, model: nn.Module) -> Evaluation | None:
        """On the data set's own evaluation split, with pictures; None where it has none."""
        ...


class Task(Protocol):
    """A module in ``edgevis/training/tasks/``, named as :attr:`runtime.bundle.spec.Deployment.task`."""

    def training_task(
        self,
        data: Path,
        recipe: Recipe,
        deployment: Deployment,
        *,
        options: Mapping[str, int | str],
        seed: int,
        teacher: Teacher | None,
        check: SplitCheck,
    ) -> TrainingTask:
        """Opens the data. Only with a :class:`edgevis.models.recipe.DistillationRecipe` there may be a teacher.

        ``check`` compares what trains with what evaluates, and what it lets pass stands in :attr:`TrainingTask.data`.

        Raises:
            SourceError, InputError: They cannot be read, do not suffice, or share what they must not.
        """
        ...
