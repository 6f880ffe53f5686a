"""The protocol of training tasks: data, loss and metrics. Each file in ``edgevis/training/tasks/`` implements one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from edgevis.data.leakage import ProgressCallback, Side, SplitCheck
from edgevis.layers.point_rend import PointLogits
from edgevis.metrics.interval import half_width
from edgevis.models.recipe import Recipe
from edgevis.training.remaining import CountedEvaluations
from runtime.bundle.spec import Deployment
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor

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

    @classmethod
    def mean_of(cls, samples: Sequence[float]) -> MetricValue:
        """The mean of one sample or more, with them."""
        return cls(float(np.mean(samples)), tuple(samples))

    @property
    def half_width95(self) -> float | None:
        """Half width of the 95 % interval; None with fewer than two samples."""
        return half_width(np.asarray(self.samples)) if len(self.samples) > 1 else None

    def __str__(self) -> str:
        return f"{self.value:.4f}" + ("" if self.half_width95 is None else f" ± {self.half_width95:.4f}")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of a trained model on data that it was not trained on.

    Attributes:
        split: Which data, in a few words.
        figures: By name, such as ``"rank-1"``; the first is the one that counts.
        pictures: By name, BGR, to look at.
    """

    split: str
    figures: Mapping[str, MetricValue]
    pictures: Mapping[str, Image] = field(default_factory=dict)


@runtime_checkable
class TrainingTask(Protocol):
    """Data, loss and metrics of one training.

    A batch depends on its epoch, its step and the process's rank only, and on the seed: so a run that goes on after a
    crash sees what an unbroken one sees, and every process of several draws its own.
    """

    @property
    def model_options(self) -> Mapping[str, int | str]:
        """Options that the model must be created with to fit the data, such as the number of classes."""
        ...

    @property
    def data(self) -> Mapping[str, object]:
        """The data that train and evaluate, in numbers and names, for the report."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """The steps of one pass over the training data, or the recipe's number."""
        ...

    def criterion(self) -> nn.Module:
        """The part of the loss that may have parameters; they are trained with the model's."""
        ...

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        """The tensors of one step, on the CPU."""
        ...

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The terms by name; their sum is minimised."""
        ...

    def validate(self, model: nn.Module) -> Evaluation | None:
        """Evaluate on data held out from training; None if there are none. The first figure selects the weights."""
        ...

    def test(self, model: nn.Module) -> Evaluation | None:
        """Evaluate on the data set's test split, with pictures; None if it has none."""
        ...


@runtime_checkable
class DataDependentStart(Protocol):
    """A task that adapts a new model to the data before the first step."""

    def prepare(self, model: nn.Module, *, new: bool, progress: ProgressCallback) -> None:
        """Called once before the first step of each session, on the training's device.

        Args:
            model: A new one is changed in place.
            new: Whether the training is new; otherwise it goes on, and only what is kept in memory is made again.
            progress: Told how much is done, of how much.
        """
        ...


@runtime_checkable
class StartDependent(Protocol):
    """A task that adapts a model before the first step, and needs it as it then is until the last."""

    def begin(self, model: nn.Module) -> None:
        """Change the model in place; called on the training's device, and again where a training goes on.

        Args:
            model: With the weights that the training began with.
        """
        ...


@runtime_checkable
class StepDependentModel(Protocol):
    """A model with a value of its own that changes in the course of a training: a temperature, how much is dropped."""

    def begin_step(self, step: int, *, epochs: float) -> None:
        """Called before each training step.

        Args:
            step: Its number, counted from 0 over all epochs.
            epochs: That are done; fractions are positions within an epoch.
        """
        ...


@runtime_checkable
class PointTrainedModel(Protocol):
    """A segmentation model whose options may have it learn at single points, too: PointRend."""

    def training_outputs(self, image: Tensor) -> tuple[Tensor, PointLogits | None]:
        """From image (N, C, H, W) to the logits (N, classes, H, W) and those at points, None where it has none."""
        ...


@runtime_checkable
class SelfTrainingTask(TrainingTask, Protocol):
    """A task whose model also learns from pictures that a teacher labelled: Noisy Student (Xie et al., CVPR 2020)."""

    def with_pseudo_labels(self, path: Path, check: SplitCheck) -> TrainingTask:
        """The task that draws a part of each batch from these pictures, and makes them harder for the model.

        Args:
            path: A folder or zip, as ``python -m edgevis.pseudo_labels`` writes it.
            check: Refuses pictures that also evaluate.

        Raises:
            SourceError, InputError: The pictures cannot be read, lack a class, or are among those that evaluate.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """The augmented images of one step.

    Attributes:
        images: N images, each (h, w, 3) uint8 BGR.
        targets: N training targets.
    """

    images: Sequence[Image]
    targets: Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class ModelOutputs:
    """A model's outputs for the images of one step.

    Attributes:
        embedding: (B, d) floating point.
        logits: (B, classes) of each classifier; empty where they were not asked for.
        parts: What the task's own loss takes besides: the embeddings of a model's branches.
    """

    embedding: Tensor
    logits: Sequence[Tensor] = ()
    parts: tuple[Tensor, ...] = ()


class ViewBatches:
    """The batches of a task whose step is augmented images with one training target each.

    Args:
        preprocess: The model's.
    """

    def __init__(self, preprocess: Preprocessor) -> None:
        self._preprocess = preprocess

    def views(self, epoch: int, step: int, rank: int) -> Views:
        """See :class:`DistillableTask`."""
        raise NotImplementedError

    def tensors(self, views: Views) -> Batch:
        """``image`` (N, 3, h, w) float32 and ``target`` (N,) int64."""
        return {"image": torch.from_numpy(self._preprocess(views.images)), "target": torch.tensor(views.targets)}

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        """The tensors of one step, on the CPU."""
        return self.tensors(self.views(epoch, step, rank))


class WrappedTask:
    """The parts of a :class:`TrainingTask` that a task around another one leaves to it.

    Args:
        task: The other one.
    """

    def __init__(self, task: TrainingTask) -> None:
        self._wrapped = task

    @property
    def model_options(self) -> Mapping[str, int | str]:
        return self._wrapped.model_options

    @property
    def data(self) -> Mapping[str, object]:
        return self._wrapped.data

    @property
    def evaluation_images(self) -> tuple[int, int]:
        """See :class:`edgevis.training.remaining.CountedEvaluations`."""
        return self._wrapped.evaluation_images if isinstance(self._wrapped, CountedEvaluations) else (0, 0)

    @property
    def steps_per_epoch(self) -> int:
        return self._wrapped.steps_per_epoch

    def validate(self, model: nn.Module) -> Evaluation | None:
        return self._wrapped.validate(model)

    def test(self, model: nn.Module) -> Evaluation | None:
        return self._wrapped.test(model)


@runtime_checkable
class DistillableTask(TrainingTask, Protocol):
    """A task whose model makes an embedding, so that the model can also learn from a teacher's."""

    @property
    def evaluated(self) -> Sequence[Side]:
        """The images that validate or test, which must not train in any other way."""
        ...

    def views(self, epoch: int, step: int, rank: int) -> Views:
        """The augmented images of one step."""
        ...

    def tensors(self, views: Views) -> Batch:
        """The batch of these views, on the CPU."""
        ...

    def outputs(self, model: nn.Module, image: Tensor, *, logits: bool) -> ModelOutputs:
        """Run a student or a teacher on image (B, 3, h, w); with ``logits``, its classifiers too."""
        ...

    def terms(self, criterion: nn.Module, outputs: ModelOutputs, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The terms of the task's own loss by name."""
        ...


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """The training that a task is opened for.

    Attributes:
        data: A folder or zip.
        recipe: Of the kind that the task takes.
        deployment: The model's.
        options: The model's options, as far as they are given.
        seed: Of batches and splits.
        check: Compares what trains with what evaluates; what it lets pass stands in :attr:`TrainingTask.data`.
    """

    data: Path
    recipe: Recipe
    deployment: Deployment
    options: Mapping[str, int | str] = field(default_factory=dict)
    seed: int = 0
    check: SplitCheck = field(default_factory=SplitCheck)


class TaskFactory(Protocol):
    """A module in ``edgevis/training/tasks/``, named as :attr:`runtime.bundle.spec.Deployment.task`."""

    def training_task(self, request: TaskRequest) -> TrainingTask:
        """Open the data.

        Raises:
            SourceError, InputError: The data cannot be read, do not suffice, or share what they must not.
        """
        ...
