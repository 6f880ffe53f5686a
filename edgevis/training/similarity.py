"""Similarity distillation: a person encoder learns which views a teacher holds for alike, from unlabelled persons.

Teacher and student may differ in all but the task: embeddings of another width, other blocks. A batch has two views of
each person, so that the teacher's likeness of one person to another camera's picture of the same is a target, too. The
student is any model of the task, new or trained before; the weights that ship began as published ones.

Data: Clothing Co-Parsing's zip, or a folder with this zip and videos; see :mod:`edgevis.data.person_cutouts`.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from edgevis.data.person_cutouts import PersonSources
from edgevis.losses import SimilarityDistillationLoss
from edgevis.models.recipe import SimilarityDistillationRecipe
from edgevis.training.person_views import PersonViewsTask, per_person
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, MetricValue
from edgevis.training.teacher import Teacher
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.images.decode import Image

_PAIR = "pair"
_POOL_DRAW = (1 << 31) + 1
# A garment of another colour makes another person, so most pairs keep theirs.
_SAME_CLOTHES = 0.75


class SimilarityDistillationTask(PersonViewsTask[SimilarityDistillationRecipe]):
    """A training task without labels: the student learns the similarities of a teacher's embeddings.

    Args:
        sources, recipe, deployment, teacher, data, seed: See :class:`PersonViewsTask`.
    """

    def __init__(
        self,
        sources: PersonSources,
        recipe: SimilarityDistillationRecipe,
        deployment: Deployment,
        teacher: Teacher | None,
        *,
        data: str,
        seed: int,
    ) -> None:
        super().__init__(sources, recipe, deployment, teacher, data=data, seed=seed)
        self._width, self._pairs = _width(deployment), recipe.views // 2
        self._taught_pairs: dict[int, Tensor] = {}

    def criterion(self) -> nn.Module:
        if self._teacher is None:
            return nn.Identity()
        return SimilarityDistillationLoss(
            student=self._width,
            teacher=_width(self._teacher.deployment),
            pairs=self._recipe.pairs_weight,
            direction=self._recipe.direction_weight,
        )

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        if not self._pairs:
            return super().batch(epoch, step, rank)
        order = np.random.default_rng((self._seed, _POOL_DRAW, epoch, rank)).permutation(self._pairs)
        count = self._recipe.batch // 2
        pairs = np.take(order, range(step * count, (step + 1) * count), mode="wrap")
        views = []
        for pair in pairs.tolist():
            views += self._pair(pair % len(self._persons), np.random.default_rng((self._seed, _POOL_DRAW, pair)))
        return {**self.tensors(views), _PAIR: torch.from_numpy(pairs)}

    def views(self, rng: np.random.Generator) -> list[Image]:
        return [view for index in self.drawn(self._recipe.batch // 2, rng) for view in self._pair(index, rng)]

    def _pair(self, index: int, rng: np.random.Generator) -> list[Image]:
        """Two views of a person."""
        same = bool(rng.random() < _SAME_CLOTHES)
        return [self.view(index, rng, same_clothes=same) for _ in range(2)]

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        learned = cast(Any, model).embed(batch["image"])
        terms: dict[str, Tensor] = in_float32(criterion, learned, self._taught(batch))
        return terms

    def _taught(self, batch: Batch) -> Tensor:
        """The teacher's embeddings (N, d), of views that it has not seen yet made now."""
        assert self._teacher is not None  # noqa: S101 - only an evaluation has none
        numbers = batch[_PAIR].tolist() if _PAIR in batch else []
        new = [place for place, number in enumerate(numbers) if number not in self._taught_pairs]
        image = self.teacher_input(batch)
        with torch.no_grad():
            if not numbers:
                return cast(Tensor, cast(Any, self._teacher.model).embed(image))
            if new:
                unseen = torch.cat([image[2 * place : 2 * place + 2] for place in new])
                rows: Tensor = cast(Any, self._teacher.model).embed(unseen).float()
                self._taught_pairs |= {
                    numbers[place]: rows[2 * count : 2 * count + 2] for count, place in enumerate(new)
                }
        return torch.cat([self._taught_pairs[number] for number in numbers])

    def likeness(self, rows: Array, taught: Array) -> dict[str, MetricValue]:
        """Of each view, how its similarities to all others correlate with the teacher's."""
        count = len(rows)
        others = ~np.eye(count, dtype=bool)
        ours, theirs = ((x @ x.T)[others].reshape(count, count - 1) for x in (rows, taught))
        ours, theirs = (x - x.mean(1, keepdims=True) for x in (ours, theirs))
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        return {"correlation": per_person((ours * theirs).sum(1) / np.maximum(lengths, 1e-12))}


def _width(deployment: Deployment) -> int:
    return int(deployment.graphs[0].outputs[0].shape[1])
