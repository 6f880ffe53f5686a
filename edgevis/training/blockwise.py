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

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.data.leakage import ProgressCallback
from edgevis.models.unlabelled_recipe import BlockwiseDistillationRecipe
from edgevis.training.person_views import PersonViewsTask, per_person
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, MetricValue
from runtime.common.arrays import Array
from runtime.errors import InputError
from runtime.images.decode import Image


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


class BlockwiseDistillationTask(PersonViewsTask[BlockwiseDistillationRecipe]):
    """A training task without labels: the student learns a teacher's maps and embeddings."""

    @staticmethod
    def check_teacher(model: nn.Module) -> None:
        """Raise InputError for a model that cannot be run block by block."""
        _blockwise(model)

    def criterion(self) -> nn.Module:
        return nn.Identity()

    def prepare(self, model: nn.Module, *, new: bool, progress: ProgressCallback) -> None:
        """Scale a new model's last batch norms of each block so that its random output varies as much as the teacher's.

        Otherwise the first minutes go into shrinking them (initialisation from data: Mishkin, Matas, ICLR 2016).
        """
        if not new:
            return
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

    def views(self, rng: np.random.Generator) -> list[Image]:
        return [self.view(index, rng) for index in self.drawn(self._recipe.batch, rng)]

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        with torch.no_grad():
            taught = self._taught(batch)
        forced = taught if epoch < self._recipe.blockwise * self._recipe.epochs else None
        return unexplained_terms(activations(_blockwise(model), batch["image"], forced), taught)

    def likeness(self, rows: Array, taught: Array) -> dict[str, MetricValue]:
        return {"cosine": per_person((rows * taught).sum(1))}

    def _taught(self, batch: Batch) -> Activations:
        assert self._teacher is not None  # noqa: S101 - only an evaluation has none
        return activations(cast(BlockwiseModel, self._teacher.model), self.teacher_input(batch))


def _blockwise(model: nn.Module) -> BlockwiseModel:
    if not isinstance(model, BlockwiseModel):
        raise InputError(f"a {type(model).__name__} cannot be run block by block; allowed: osnet-x0-25")
    return model
