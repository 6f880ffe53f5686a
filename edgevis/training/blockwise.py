"""Blockwise distillation: a network learns another one's maps and embeddings from unlabelled persons.

The student starts from random weights and never receives one of the teacher's. Both see the same augmented view. First
each block learns alone: it is given the teacher's input of that block and learns the teacher's output (a random network
of this depth learns almost nothing through all its layers in an hour on a CPU). Then the student runs on its own, and
learns the same maps and the teacher's embedding: its direction, its direction seen from the batch's mean, its values
before the last ReLU, and the similarities of all pairs in the batch (relational distillation: Park et al., CVPR 2019).
Each term is the share that is left unexplained: about 1 at the start, 0 when learned.

Data: Clothing Co-Parsing's zip, or a folder with this zip and videos; see :mod:`edgevis.data.person_cutouts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.data.person_cutouts import PersonSources, read_person_sources
from edgevis.models.recipe import BlockwiseDistillationRecipe
from edgevis.training.camera_views import camera_view
from edgevis.training.embed import embeddings
from edgevis.training.precision import in_float32
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


@runtime_checkable
class BlockwiseModel(Protocol):
    """A model whose blocks can be run one by one, such as :class:`edgevis.models.osnet.OSNet`."""

    def blocks(self) -> list[nn.Module]: ...

    def values(self, last_map: Tensor) -> Tensor: ...

    def output_scales(self) -> list[list[nn.Parameter]]: ...


@dataclass(frozen=True, slots=True)
class Activations:
    """The activations of a network for N images.

    Attributes:
        maps: (N, C, h, w) after each block.
        values: (N, d) float32, the embedding before its last ReLU.
    """

    maps: tuple[Tensor, ...]
    values: Tensor


def activations(model: BlockwiseModel, image: Tensor, forced: Activations | None = None) -> Activations:
    """Run the network; with ``forced``, each block takes its input map from there, not from the block before it."""
    maps: list[Tensor] = []
    for index, block in enumerate(model.blocks()):
        block_input = (maps if forced is None else forced.maps)[index - 1] if index else image
        maps.append(block(block_input))
    last = (maps if forced is None else forced.maps)[-1]
    return Activations(tuple(maps), in_float32(model.values, last))


def unexplained_terms(student: Activations, teacher: Activations) -> dict[str, Tensor]:
    """The terms of the loss by name; their sum is minimised."""
    learned = functional.normalize(student.values.relu())
    taught = functional.normalize(teacher.values.relu())
    mean = taught.mean(0)
    pairs = taught @ taught.T
    maps = [_unexplained(s.float(), t.float()) for s, t in zip(student.maps, teacher.maps, strict=True)]
    return {
        "cosine": 1 - (learned * taught).sum(1).mean(),
        "centred": 1 - functional.cosine_similarity(learned - mean, taught - mean).mean(),
        "pairs": functional.mse_loss(learned @ learned.T, pairs) / pairs.var(),
        "values": _unexplained(student.values, teacher.values),
        "maps": torch.stack(maps).sum(),
    }


def _unexplained(learned: Tensor, taught: Tensor) -> Tensor:
    """Squared error over variance, per channel (axis 1), then the mean; channels that hardly vary count less."""
    axes = [axis for axis in range(taught.ndim) if axis != 1]
    variance = taught.var(axes)
    return ((learned - taught).square().mean(axes) / variance.clamp_min(0.1 * variance.mean().item())).mean()


class BlockwiseDistillationTask:
    """A training task without labels: the student learns a teacher's maps and embeddings.

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
        recipe: BlockwiseDistillationRecipe,
        deployment: Deployment,
        teacher: Teacher | None,
        *,
        data: str,
        seed: int,
    ) -> None:
        self._recipe, self._teacher, self._seed, self._name = recipe, teacher, seed, data
        self._sources, self._persons = sources, (*sources.photos, *sources.video)
        self._preprocess = Preprocessor(deployment.preprocess)
        self._held_out_views: list[Image] | None = None
        self._taught_rows: Array | None = None

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
    def steps_per_epoch(self) -> int:
        return self._recipe.steps_per_epoch or max(1, len(self._persons) // self._recipe.batch)

    def criterion(self) -> nn.Module:
        return nn.Identity()

    def prepare(self, model: nn.Module) -> None:
        """Scale the last batch norms of each block so that its random output varies as much as the teacher's.

        Otherwise the first minutes go into shrinking them (initialisation from data: Mishkin, Matas, ICLR 2016).
        """
        student, device = _blockwise(model), next(model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in self.batch(0, 0, 0).items()}
        model.train()
        with torch.no_grad():
            taught = self._taught(batch)
            learned = activations(student, batch["image"], taught)
            pairs = zip((*learned.maps, learned.values), (*taught.maps, taught.values), strict=True)
            for scales, (student_output, teacher_output) in zip(student.output_scales(), pairs, strict=True):
                for scale in scales:
                    scale.mul_(teacher_output.float().std() / student_output.float().std())

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        size = self._recipe.batch
        number = epoch * self.steps_per_epoch + step
        rng = np.random.default_rng((self._seed, number, rank) if rank else (self._seed, number))
        enough = size <= len(self._persons)
        chosen = rng.permutation(len(self._persons))[:size] if enough else rng.integers(len(self._persons), size=size)
        views = [camera_view(self._persons, int(index), rng) for index in chosen]
        image = None if self._teacher is None else self._teacher.image(views)
        return {"image": torch.from_numpy(self._preprocess(views)), **({} if image is None else {_IMAGE: image})}

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        with torch.no_grad():
            taught = self._taught(batch)
        forced = taught if epoch < self._recipe.blockwise * self._recipe.epochs else None
        return unexplained_terms(activations(_blockwise(model), batch["image"], forced), taught)

    def validate(self, model: nn.Module) -> Evaluation | None:
        """On persons held out: the cosine to the teacher's embeddings, and rank-1 between two views of each person."""
        device = next(model.parameters()).device
        count = len(self._sources.held_out)
        rows = self._rows(cast(Any, model).embed, device)
        figures = {"rank-1": _rank1(rows, count)}
        if self._teacher is not None:
            if self._taught_rows is None:
                self._taught_rows = self._rows(cast(Any, self._teacher.model).embed, device, self._teacher)
            cosines = (rows * self._taught_rows).sum(1).reshape(_HELD_OUT_VIEWS, count).mean(0)
            cosine = MetricValue(float(cosines.mean()), tuple(cosines.tolist()))
            figures = {"cosine": cosine, **figures, "teacher's rank-1": _rank1(self._taught_rows, count)}
        return Evaluation("persons held out, two views each", figures)

    def test(self, model: nn.Module) -> Evaluation | None:
        return self.validate(model)

    def _taught(self, batch: Batch) -> Activations:
        assert self._teacher is not None  # noqa: S101 - only an evaluation has none
        return activations(cast(BlockwiseModel, self._teacher.model), batch.get(_IMAGE, batch["image"]))

    def _rows(self, embed: Any, device: torch.device, teacher: Teacher | None = None) -> Array:
        """(2 N, d) float32 unit rows: the first view of each person held out, then the second."""
        if self._held_out_views is None:
            held_out = self._sources.held_out
            rng = np.random.default_rng((self._seed, _HELD_OUT_DRAW))
            order = [*range(len(held_out))] * _HELD_OUT_VIEWS
            self._held_out_views = [camera_view(held_out, index, rng, same_clothes=True) for index in order]
        preprocess = self._preprocess if teacher is None else Preprocessor(teacher.deployment.preprocess)
        return embeddings(embed, self._held_out_views, preprocess, device)


def training_task(
    data: Path,
    recipe: BlockwiseDistillationRecipe,
    deployment: Deployment,
    teacher: Teacher | None,
    *,
    seed: int,
) -> BlockwiseDistillationTask:
    """Read the persons.

    Args:
        data: Clothing Co-Parsing's zip, or a folder with this zip and videos.
        recipe: How the student learns.
        deployment: The student's.
        teacher: A model with the student's blocks; None for an evaluation.
        seed: Of the views.

    Raises:
        InputError: The recipe trains and there is no teacher, or it cannot be run block by block.
        SourceError: The data cannot be read.
    """
    if teacher is None and recipe.epochs:
        raise InputError("this recipe learns from a teacher alone; add --teacher FILE, or --teacher-model NAME")
    if teacher is not None:
        _blockwise(teacher.model)
    return BlockwiseDistillationTask(read_person_sources(data), recipe, deployment, teacher, data=data.name, seed=seed)


def _blockwise(model: nn.Module) -> BlockwiseModel:
    if not isinstance(model, BlockwiseModel):
        raise InputError(f"a {type(model).__name__} cannot be run block by block; allowed: osnet-x0-25")
    return model


def _rank1(rows: Array, count: int) -> MetricValue:
    """The share of first views whose nearest second view is of the same person."""
    first, second = rows[:count], rows[count:]
    hits = ((first @ second.T).argmax(1) == np.arange(count)).astype(np.float64)
    return MetricValue(float(hits.mean()), tuple(hits.tolist()))
