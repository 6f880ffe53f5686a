"""Person Re-ID: triplets and identities, in batches of P persons with K pictures each.

Data: a folder or zip with a folder for each person; in Market-1501's layout; or with ``labels.csv`` (``path``, ``pid``,
``camid`` and ``split``); :mod:`edgevis.data.person_split` says what trains and what evaluates.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgevis.data import IdentitySampler, PersonImages
from edgevis.data.leakage import Side
from edgevis.data.person_split import HELD_DRAW, PersonSplit, split_persons
from edgevis.data.rng import draw_at
from edgevis.losses import ReIDLoss
from edgevis.metrics import grouped_mean, reid_queries
from edgevis.models.recipe import ReIDRecipe, is_custom_loss, recipe_of
from edgevis.training.custom_loss import custom_loss, custom_terms
from edgevis.training.embed import embeddings
from edgevis.training.images import ImageStore
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, Evaluation, MetricValue, ModelOutputs, TaskRequest, ViewBatches, Views
from edgevis.training.views import color_jitter, random_crop, random_erasing, random_horizontal_flip
from edgevis.training.visualize import GIVEN, RIGHT, WRONG, Colour, beside, tile
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor

Embedded = tuple[Array, Array, Array]
"""Unit embeddings (N, d), identities (N,) and cameras (N,)."""

_NEIGHBOURS = 8
_QUERIES_SHOWN = 6
_VIEW_DRAW = HELD_DRAW + 1


def training_task(request: TaskRequest) -> ReIDTrainingTask:
    """See :class:`edgevis.training.task.TaskFactory`."""
    recipe = recipe_of(ReIDRecipe, request.recipe)
    split = split_persons(request.data, held_out=recipe.held_out, seed=request.seed, check=request.check)
    return ReIDTrainingTask(split, recipe, request.deployment, data=request.data.name, seed=request.seed)


class ReIDTrainingTask(ViewBatches):
    """See :class:`edgevis.training.task.TrainingTask`; of a model it calls ``embed``, ``branches`` and ``logits``."""

    def __init__(
        self,
        split: PersonSplit,
        recipe: ReIDRecipe,
        deployment: Deployment,
        *,
        data: str,
        seed: int,
    ) -> None:
        super().__init__(Preprocessor(deployment.preprocess))
        self._recipe, self._seed, self._data = recipe, seed, split.train
        self._test = split.query, split.gallery
        self._notes = split.notes
        persons = sorted(set(split.train.ids))
        self._persons = [person for person in persons if person not in split.held]
        self._target = {person: index for index, person in enumerate(self._persons)}
        self._trained = [index for index, person in enumerate(split.train.ids) if person not in split.held]
        self._held = [index for index, person in enumerate(split.train.ids) if person in split.held]
        self._images = self._store(split.train)
        self._tests = tuple(self._store(part) for part in self._test)
        self._name = data
        self._steps = recipe.steps_per_epoch or max(1, len(self._trained) // (recipe.identities * recipe.images))
        self._order: dict[tuple[int, int], list[list[int]]] = {}

    @property
    def model_options(self) -> Mapping[str, int | str]:
        return {"num_identities": len(self._persons)} if self._recipe.loss in self._recipe.HAS_LOGITS else {}

    @property
    def data(self) -> Mapping[str, object]:
        return {
            "source": self._name,
            "training images": len(self._trained),
            "training persons": len(self._persons),
            "validation persons": len(set(self._data.ids)) - len(self._persons),
            "test persons": len(set(self._test[0].ids)),
            "queries": len(self._test[0]),
            "gallery": len(self._test[1]),
            **self._notes,
        }

    @property
    def evaluated(self) -> Sequence[Side]:
        """See :class:`edgevis.training.task.DistillableTask`."""
        parts = zip(("validation", "query", "gallery"), (self._data.at(self._held), *self._test), strict=True)
        return [Side(name, part.files, part.names) for name, part in parts]

    @property
    def evaluation_images(self) -> tuple[int, int]:
        """See :class:`edgevis.training.remaining.CountedEvaluations`."""
        return len(self._held), sum(len(part) for part in self._test)

    @property
    def steps_per_epoch(self) -> int:
        return self._steps

    def criterion(self) -> nn.Module:
        recipe = self._recipe
        if is_custom_loss(recipe.loss):
            return custom_loss(recipe.loss)
        return ReIDLoss(
            alpha=recipe.alpha,
            beta=recipe.beta,
            triplet_weight=recipe.triplet_weight,
            smoothing=recipe.smoothing,
            margin=recipe.margin,
            warmup_epochs=recipe.triplet_epochs,
            circle_weight=recipe.circle_weight,
            circle_margin=recipe.circle_margin,
            circle_gamma=recipe.circle_gamma,
        )

    def views(self, epoch: int, step: int, rank: int) -> Views:
        positions = self._drawn(epoch, rank)[step]
        draw = draw_at(self._seed, _VIEW_DRAW, epoch, step, rank)
        images = [self._view(position, draw) for position in positions]
        return Views(images, [self._target[self._data.ids[position]] for position in positions])

    def outputs(self, model: Any, image: Tensor, *, logits: bool) -> ModelOutputs:
        if not logits or self._recipe.loss not in self._recipe.HAS_LOGITS:
            return ModelOutputs(model.embed(image))
        branches = model.branches(image)
        return ModelOutputs(torch.cat(branches, 1), model.logits(branches), branches)

    def terms(self, criterion: nn.Module, outputs: ModelOutputs, batch: Batch, epoch: int) -> dict[str, Tensor]:
        if is_custom_loss(self._recipe.loss):
            return custom_terms(criterion, outputs.embedding, batch["target"])
        return {"reid": in_float32(criterion, outputs.parts, outputs.logits, batch["target"], epoch=epoch)}

    def loss(self, model: Any, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return self.terms(criterion, self.outputs(model, batch["image"], logits=True), batch, epoch)

    def validate(self, model: Any) -> Evaluation | None:
        if not self._held:
            return None
        device = next(model.parameters()).device
        rows = embeddings(model.embed, [self._images[index] for index in self._held], self._preprocess, device)
        ids, cameras = (np.asarray(column)[self._held] for column in (self._data.ids, self._data.cameras))
        first = cameras == cameras.min()
        figures, _ = _ranked((rows[first], ids[first], cameras[first]), (rows[~first], ids[~first], cameras[~first]))
        return Evaluation("training persons set aside, one camera against the others", figures)

    def test(self, model: Any) -> Evaluation | None:
        device = next(model.parameters()).device
        sides = []
        for part, images in zip(self._test, self._tests, strict=True):
            pictures = [images[index] for index in range(len(part))]
            vectors = embeddings(model.embed, pictures, self._preprocess, device)
            sides.append((vectors, np.asarray(part.ids), np.asarray(part.cameras)))
        figures, order = _ranked(sides[0], sides[1])
        return Evaluation("query against gallery", figures, {"neighbours": self._picture(order)})

    def _store(self, part: PersonImages) -> ImageStore[Image]:
        # At the input's size: every view starts there, and an evaluation sees what a predictor sees.
        return ImageStore(lambda index: self._preprocess.fit(part[index][0]))

    def _drawn(self, epoch: int, rank: int) -> list[list[int]]:
        """Positions of all batches of an epoch for one process."""
        if (epoch, rank) not in self._order:
            sampler = IdentitySampler(
                [self._data.ids[index] for index in self._trained],
                identities=min(self._recipe.identities, len(self._persons)),
                images=self._recipe.images,
                batches=self._steps,
                seed=self._seed,
                epoch=(epoch << 16) + rank,
            )
            self._order = {(epoch, rank): [[self._trained[place] for place in batch] for batch in sampler]}
        return self._order[epoch, rank]

    def _view(self, position: int, draw: random.Random) -> Image:
        recipe = self._recipe
        image = random_crop(self._images[position], draw, pad=recipe.pad)
        image = random_horizontal_flip(image, draw) if recipe.flip else image
        return random_erasing(color_jitter(image, draw, strength=recipe.jitter), draw, chance=recipe.erase)

    def _picture(self, order: Array) -> Image:
        """Some queries, each with its nearest gallery images, framed by right or wrong."""
        query, gallery = self._test
        rows = []
        for number in np.linspace(0, len(query) - 1, min(_QUERIES_SHOWN, len(query))).round().astype(int):
            nearest = [
                _tile(self._tests[1][place], RIGHT if gallery.ids[place] == query.ids[number] else WRONG)
                for place in order[number, :_NEIGHBOURS].tolist()
            ]
            rows.append(beside([_tile(self._tests[0][int(number)], GIVEN)], nearest))
        return np.vstack(rows)


def _ranked(query: Embedded, gallery: Embedded) -> tuple[dict[str, MetricValue], Array]:
    """The figures, and for each query the gallery's positions, the nearest first."""
    distances = 1 - query[0] @ gallery[0].T
    ranks = reid_queries(distances, query[1], gallery[1], query[2], gallery[2])
    # A person's queries are alike: persons are what the interval counts.
    persons = query[1][ranks.query].tolist()
    columns = {"mAP": ranks.precision, "rank-1": (ranks.first == 0).astype(np.float64)}
    means = {name: grouped_mean(values, persons) for name, values in columns.items()}
    figures = {name: MetricValue(value, tuple(samples.tolist())) for name, (value, samples) in means.items()}
    return figures, distances.argsort(1, kind="stable")


def _tile(image: Image, colour: Colour, width: int = 64) -> Image:
    return tile(image, colour, height=round(width * image.shape[0] / image.shape[1]), width=width)
