"""Episodes with adapted prototypes: the training of FEAT's set function, alone or with its encoder.

Paper: Ye et al., "Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions", CVPR 2020, section 3 and
equation 7. Where the encoder is frozen, what it gives for each image, or for each of a few random views, is kept in
memory, so that a step costs the attention alone.

Data: as for few-shot classification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevis.data.class_split import ClassSplit
from edgevis.data.leakage import ProgressCallback
from edgevis.data.rng import below, draw_at, sample
from edgevis.layers import SetToSet
from edgevis.losses import cosine_logits, prototypes, squared_distance_logits
from edgevis.models.recipe_adaptation import AdaptationRecipe
from edgevis.training.episodes import TRAIN_DRAW, VIEW_DRAW, EpisodeTrainingTask, nearest_prototype
from edgevis.training.finite import require_finite
from edgevis.training.task import Batch, MetricValue
from edgevis.training.view_vectors import PLAIN
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array, unit_rows
from runtime.errors import InputError
from runtime.images.decode import Image

_ENCODER = "encoder"
ALONE = "prototypes alone"
"""What the figures of the same episodes without the set function are called."""


@runtime_checkable
class AdaptingModel(Protocol):
    """An encoder whose prototypes a set function adapts."""

    slf_attn: SetToSet

    def features(self, image: Tensor) -> Tensor: ...

    def project(self, features: Tensor) -> Tensor: ...

    def adapt(self, prototypes: Tensor) -> Tensor: ...


class AdaptationTrainingTask(EpisodeTrainingTask):
    """See :class:`edgevis.training.task.TrainingTask`."""

    def __init__(
        self, split: ClassSplit, recipe: AdaptationRecipe, deployment: Deployment, *, data: str, seed: int
    ) -> None:
        super().__init__(split, recipe, deployment, data=data, seed=seed)
        self._adaptation = recipe
        self._frozen = _ENCODER in recipe.frozen
        self._vectors = self._view_vectors(lambda model, image: model.features(image))

    @property
    def model_options(self) -> Mapping[str, int | str]:
        return {"num_classes": 0}

    def prepare(self, model: nn.Module, *, new: bool, progress: ProgressCallback) -> None:
        """Run a frozen encoder on all images."""
        _adapting(model)
        if self._frozen:
            split, views = self._split, self._adaptation.views
            keys = [(position, view) for position in split.train for view in range(views) or (PLAIN,)]
            keys += [(position, PLAIN) for position in (*split.validation, *split.novel)]
            self._vectors.keep(model, keys, progress)

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        """An episode: ``image`` (way * (shot + query), 3, h, w), class-major, or the keys of embeddings; ``way``."""
        recipe, draw = self._adaptation, draw_at(self._seed, TRAIN_DRAW, epoch, step, rank)
        most = min(recipe.most_way, len(self._members))
        least = min(recipe.way, most)
        way = least + below(draw, most - least + 1)
        positions: list[int] = []
        for target in sample(draw, sorted(self._members), way):
            positions += sample(draw, self._members[target], recipe.shot + recipe.query)
        episode: dict[str, Tensor] = {"way": torch.tensor([way])}
        if self._frozen:
            views = [below(draw, recipe.views) if recipe.views else PLAIN for _ in positions]
            return episode | {"position": torch.tensor(positions), "view": torch.tensor(views)}
        seen = draw_at(self._seed, VIEW_DRAW, epoch, step, rank)
        images = [self._view(position, seen) for position in positions]
        return episode | {"image": torch.from_numpy(self._preprocess(images))}

    def loss(self, model: Any, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        if self._frozen:
            keys = list(zip(batch["position"].tolist(), batch["view"].tolist(), strict=True))
            features = torch.from_numpy(self._vectors.of(model, keys)).to(batch["way"].device)
        else:
            features = model.features(batch["image"])
        rows = model.project(features).float()
        members = rows.reshape(int(batch["way"]), -1, rows.shape[1])  # (way, shot + query, d)
        return adaptation_terms(model, members, self._adaptation)

    def _check_classes(self) -> None:
        self._require_large_classes()

    def _episodes(
        self, model: Any, among: Sequence[int], shots: Sequence[int], salt: int, *, picture: bool, whole: bool = False
    ) -> tuple[dict[str, MetricValue], Image]:
        """As of the other tasks by adapted prototypes, and by raw ones on the same episodes."""
        recipe = self._adaptation
        place = {position: index for index, position in enumerate(among)}
        rows = self._embedded_plainly(model, among)
        figures: dict[str, MetricValue] = {}
        alone: dict[str, MetricValue] = {}
        shown = np.zeros((1, 1, 3), np.uint8)
        for shot in shots:
            sampler = self._test_sampler(among, shot, salt, whole=whole)
            accuracies: list[tuple[float, float]] = []
            for number in range(recipe.test_episodes):
                episode = sampler.episode(number)
                support = rows[[[place[p] for p in row] for row in episode.shots.tolist()]]
                query = unit_rows(rows[[place[p] for p in episode.queries.ravel().tolist()]])
                query = query.reshape(*episode.queries.shape, -1)
                raw = nearest_prototype(unit_rows(support.reshape(-1, support.shape[-1])).reshape(support.shape), query)
                adapted = nearest_prototype(_adapted(model, support.mean(1))[:, None], query)
                truth = np.arange(len(query))[:, None]
                accuracies.append((float((adapted == truth).mean()), float((raw == truth).mean())))
                if picture and number == 0 and shot == shots[0]:
                    shown = self._picture(episode.shots, episode.queries, adapted)
            name = f"{sampler.way}-way {shot}-shot"
            with_others, without = (tuple(column) for column in zip(*accuracies, strict=True))
            figures[name] = MetricValue.mean_of(with_others)
            alone[f"{name}, {ALONE}"] = MetricValue.mean_of(without)
        return figures | alone, shown

    def _embedded_plainly(self, model: Any, among: Sequence[int]) -> Array:
        """(N, d) float32: what a predictor makes of these images, not normalised."""
        keys = [(position, PLAIN) for position in among]
        features = (self._vectors.of if self._frozen else self._vectors.computed)(model, keys)
        with torch.no_grad():
            tensor = torch.from_numpy(features).to(next(model.parameters()).device)
            rows: Array = model.project(tensor).float().cpu().numpy()
        require_finite(rows, "the model's embeddings")
        return rows


def adaptation_terms(model: AdaptingModel, members: Tensor, recipe: AdaptationRecipe) -> dict[str, Tensor]:
    """The terms of one episode by name.

    Args:
        model: Whose set function adapts.
        members: (way, shot + query, d) float32 embeddings, the shots first.
        recipe: Shots, temperatures and weights.
    """
    instances = members.shape[1]
    adapted = model.adapt(prototypes(members[:, : recipe.shot])[None])[0]
    queries = members[:, recipe.shot :].flatten(0, 1)
    terms = {"adapted": _cross_entropy(queries, adapted, instances - recipe.shot, recipe.episode_temperature, recipe)}
    if recipe.balance:
        centres = model.slf_attn.centres(members)
        balance = _cross_entropy(members.flatten(0, 1), centres, instances, recipe.balance_temperature, recipe)
        terms["balance"] = recipe.balance * balance
    return terms


def _cross_entropy(rows: Tensor, centres: Tensor, each: int, temperature: float, recipe: AdaptationRecipe) -> Tensor:
    """Of (way * each, d) rows, class-major, against (way, d) centres."""
    if recipe.logits == "euclidean":
        logits = squared_distance_logits(rows, centres, 1 / temperature)
    else:
        logits = cosine_logits(rows, centres, 1 / temperature, normalise_queries=False)
    return F.cross_entropy(logits, torch.arange(len(centres), device=rows.device).repeat_interleave(each))


def _adapted(model: Any, raw: Array) -> Array:
    """(L, d) float32 unit rows: adapted prototypes."""
    with torch.no_grad():
        tensor = torch.from_numpy(np.asarray(raw, np.float32)).to(next(model.parameters()).device)
        return unit_rows(model.adapt(tensor[None])[0].float().cpu().numpy())


def _adapting(model: nn.Module) -> None:
    if not isinstance(model, AdaptingModel):
        raise InputError(f"a {type(model).__name__} adapts no prototypes; allowed: feat")
