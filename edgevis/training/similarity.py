"""Similarity distillation: a person encoder learns which views a teacher holds for alike, from unlabelled persons.

Teacher and student may differ in all but the task: embeddings of another width, other blocks. A batch has two views of
each person, so that the teacher's likeness of one person to another camera's picture of the same is a target, too. The
student is any model of the task, new or trained before; the weights that ship began as published ones. What these knew
of more pictures than the training has is kept by three means: the layer of the embedding is fitted to the teacher's
before the first step, batch norms keep their statistics, and an anchor keeps embeddings near to what they were.

Data: Clothing Co-Parsing's zip, or a folder with this zip and videos; see :mod:`edgevis.data.person_cutouts`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevis.data.person_cutouts import PersonSources
from edgevis.losses import SimilarityDistillationLoss
from edgevis.models.unlabelled_recipe import SimilarityDistillationRecipe
from edgevis.training.camera_views import harder_view
from edgevis.training.embedding_fit import fit_embedding, ridge
from edgevis.training.freeze import fold_statistics, measure_new_statistics
from edgevis.training.person_views import PersonViewsTask, per_person
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, MetricValue
from edgevis.training.teacher import Teacher
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.errors import ModelError
from runtime.images.decode import Image

_PAIR, _PLAIN = "pair", "plain_image"
_POOL_DRAW, _HARDER_DRAW = (1 << 31) + 1, (1 << 31) + 2
# A garment of another colour makes another person, so most pairs keep theirs.
_SAME_CLOTHES = 0.75
# Whose views give new batch norms their statistics.
_MEASURED_PAIRS = 64


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
        self._rows_of_pairs: dict[str, dict[int, Tensor]] = {"teacher": {}, "start": {}}
        self._criterion: SimilarityDistillationLoss | None = None
        self._start: nn.Module | None = None

    def criterion(self) -> nn.Module:
        if self._teacher is None:
            return nn.Identity()
        self._criterion = SimilarityDistillationLoss(
            student=self._width,
            teacher=_width(self._teacher.deployment),
            pairs=self._recipe.pairs_weight,
            direction=self._recipe.direction_weight,
            anchor=self._recipe.anchor_weight,
        )
        return self._criterion

    def begin(self, model: nn.Module) -> None:
        """Fit the layer of the embedding and the loss's map to the teacher's; keep the model as it then is.

        Raises:
            ModelError: The recipe fits the layer of the embedding, and the model has none.
        """
        if self._recipe.frozen_norms:
            measure_new_statistics(model, self._measured(model))
            fold_statistics(model)
        if self._recipe.fitted_views:
            self._fit(model.eval())
        if self._recipe.anchor_weight:
            self._start = copy.deepcopy(model).eval().requires_grad_(False)

    def _measured(self, model: nn.Module) -> Iterator[Tensor]:
        """Some batches of plain views."""
        device, size = next(model.parameters()).device, self._recipe.batch // 2
        for start in range(0, _MEASURED_PAIRS, size):
            views = self._pool(range(start, min(start + size, _MEASURED_PAIRS)))
            yield self.tensors(views)["image"].to(device)

    @torch.no_grad()
    def _fit(self, model: nn.Module) -> None:
        encoder, device = cast(Any, model), next(model.parameters()).device
        if getattr(encoder, "fc", None) is None:
            raise ModelError(
                f"fitted_views fits the layer of the embedding, and this {type(model).__name__} has none; allowed: a "
                "model with one (EPRI-Net: --option embedding=256), or --set fitted_views=0"
            )
        pooled, taught = [], []
        size, pairs = self._recipe.batch // 2, max(2, self._recipe.fitted_views // 2)
        for start in range(0, pairs, size):
            numbers = range(start, min(start + size, pairs))
            made = {**self.tensors(self._pool(numbers)), _PAIR: torch.tensor(numbers)}
            batch = {name: tensor.to(device) for name, tensor in made.items()}
            pooled.append(encoder.pooled(batch["image"]).float())
            taught.append(self._taught(batch))
        features, targets = torch.cat(pooled), F.normalize(torch.cat(taught))
        share = self._recipe.own_share
        own = F.normalize(encoder.fc(features))
        fit_embedding(encoder.fc, features, torch.cat([(1 - share) ** 0.5 * targets, share**0.5 * own], dim=1))
        if self._criterion is not None and self._recipe.direction_weight:
            rows = F.normalize(encoder.fc(features))
            cast(nn.Linear, self._criterion.map).weight.copy_(ridge(rows, targets).T)

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        if self._pairs:
            order = np.random.default_rng((self._seed, _POOL_DRAW, epoch, rank)).permutation(self._pairs)
            count = self._recipe.batch // 2
            pairs = np.take(order, range(step * count, (step + 1) * count), mode="wrap").tolist()
            views, batch = self._pool(pairs), {_PAIR: torch.tensor(pairs)}
        else:
            views, batch = self.views(self.draw(epoch, step, rank)), {}
        batch |= self.tensors(views)
        if self._recipe.harder:
            rng = np.random.default_rng((self._seed, _HARDER_DRAW, epoch, step, rank))
            seen = self.tensors([harder_view(view, rng) for view in views])["image"]
            batch |= {_PLAIN: batch["image"], "image": seen}
        return batch

    def _pool(self, pairs: Sequence[int]) -> list[Image]:
        """Two views of each of these pairs, which are the same whenever they are asked for."""
        draws = ((pair % len(self._persons), np.random.default_rng((self._seed, _POOL_DRAW, pair))) for pair in pairs)
        return [view for person, rng in draws for view in self._pair(person, rng)]

    def views(self, rng: np.random.Generator) -> list[Image]:
        return [view for index in self.drawn(self._recipe.batch // 2, rng) for view in self._pair(index, rng)]

    def _pair(self, index: int, rng: np.random.Generator) -> list[Image]:
        """Two views of a person."""
        same = bool(rng.random() < _SAME_CLOTHES)
        return [self.view(index, rng, same_clothes=same) for _ in range(2)]

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        learned = cast(Any, model).embed(batch["image"])
        start = () if self._start is None else (self._kept("start", self._start, batch, _plain(batch)),)
        terms: dict[str, Tensor] = in_float32(criterion, learned, self._taught(batch), *start)
        return terms

    def _taught(self, batch: Batch) -> Tensor:
        """The teacher's embeddings (N, d)."""
        assert self._teacher is not None  # noqa: S101 - only an evaluation has none
        return self._kept("teacher", self._teacher.model, batch, self.teacher_input({**batch, "image": _plain(batch)}))

    def _kept(self, name: str, model: nn.Module, batch: Batch, image: Tensor) -> Tensor:
        """A model's embeddings (N, d); those of a pool's views are made once."""
        embed, rows = cast(Any, model).embed, self._rows_of_pairs[name]
        with torch.no_grad():
            if _PAIR not in batch:
                return cast(Tensor, embed(image))
            numbers = batch[_PAIR].tolist()
            new = [place for place, number in enumerate(numbers) if number not in rows]
            if new:
                made = embed(torch.cat([image[2 * place : 2 * place + 2] for place in new])).float()
                rows |= {numbers[place]: made[2 * count : 2 * count + 2] for count, place in enumerate(new)}
        return torch.cat([rows[number] for number in numbers])

    def likeness(self, rows: Array, taught: Array) -> dict[str, MetricValue]:
        """Of each view, how its similarities to all others correlate with the teacher's."""
        count = len(rows)
        others = ~np.eye(count, dtype=bool)
        ours, theirs = ((x @ x.T)[others].reshape(count, count - 1) for x in (rows, taught))
        ours, theirs = (x - x.mean(1, keepdims=True) for x in (ours, theirs))
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        return {"correlation": per_person((ours * theirs).sum(1) / np.maximum(lengths, 1e-12))}


def _plain(batch: Batch) -> Tensor:
    """What the student sees where nothing makes it harder."""
    return batch.get(_PLAIN, batch["image"])


def _width(deployment: Deployment) -> int:
    return int(deployment.graphs[0].outputs[0].shape[1])
