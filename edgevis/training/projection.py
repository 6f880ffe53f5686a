"""A linear projection of a frozen encoder's pooled vectors: few-shot training in minutes that forgets little.

The encoder runs once on each training image, or on each of a few random views of it; what it gives is kept in memory,
so that a step costs a matrix product. The projection begins either as the within-class whitening of the data (WCCN:
Hatch, Kajarekar, Stolcke, Interspeech 2006) on the principal directions of what is whitened, or as the weights have
it. It learns episodes with each image in turn as its class's only example (Snell, Swersky, Zemel, NeurIPS 2017) and a
cosine classifier over the training classes. What is kept lies between where it began and what it learned (WiSE-FT:
Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022), so that what the encoder knew of other things
stays.

Data: as for few-shot classification. Classes named ``SET/CLASS`` are told apart within their set only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevis.data.class_split import ClassSplit
from edgevis.data.leakage import ProgressCallback
from edgevis.data.rng import below, draw_at, sample
from edgevis.models import ModelEntry, shipped_weights
from edgevis.models.efficientnet_lite0 import PARTS
from edgevis.models.recipe_projection import ProjectionRecipe
from edgevis.provenance import read_provenance
from edgevis.training.episodes import TEST_DRAW, TRAIN_DRAW, VALIDATION_DRAW, EpisodeTrainingTask
from edgevis.training.finite import require_finite
from edgevis.training.task import Batch, Evaluation, MetricValue
from edgevis.training.view_vectors import PLAIN
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array, unit_rows
from runtime.errors import InputError


@runtime_checkable
class ProjectedEncoder(Protocol):
    """An encoder whose embedding is a linear projection of a pooled vector."""

    projection: nn.Linear | None

    def pooled(self, image: Tensor) -> Tensor: ...

    def projected(self, pooled: Tensor) -> Tensor: ...


class ProjectionLoss(nn.Module):
    """Episodes and a cosine classifier, by the projection that learns.

    Args:
        recipe: Weights and sizes.
        sets: The set of each training class.
    """

    start_weight: Tensor
    start_bias: Tensor
    center: Tensor
    sets: Tensor

    def __init__(self, recipe: ProjectionRecipe, sets: Sequence[str]) -> None:
        super().__init__()
        self._recipe = recipe
        self.log_scale = nn.Parameter(torch.tensor(math.log(recipe.scale)))
        self.classes = nn.Parameter(torch.zeros(len(sets), recipe.dimension))
        self.register_buffer("start_weight", torch.zeros(recipe.dimension, sum(PARTS)))
        self.register_buffer("start_bias", torch.zeros(recipe.dimension))
        self.register_buffer("center", torch.zeros(sum(PARTS)))
        numbers = {name: number for number, name in enumerate(sorted(set(sets)))}
        self.register_buffer("sets", torch.tensor([numbers[name] for name in sets]), persistent=False)

    def learned(self, projection: nn.Linear, pooled: Tensor) -> Tensor:
        """(B, d) by the projection that learns, of which ``share`` is in the one that is kept."""
        share = self._recipe.share
        weight = self.start_weight + (projection.weight - self.start_weight) / share
        return F.linear(pooled, weight, self.start_bias + (projection.bias - self.start_bias) / share)

    def forward(self, projection: nn.Linear, pooled: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The terms by name.

        Args:
            projection: What is kept.
            pooled: (B, c) float32: class-major, ``shot + query`` rows each.
            target: (B,) int64, the training classes.
        """
        recipe = self._recipe
        if recipe.dropout:
            pooled = self.center + F.dropout(pooled - self.center, recipe.dropout)
        embedding = self.learned(projection, pooled)
        rows, proxies, scale = F.normalize(embedding, dim=1), F.normalize(self.classes, dim=1), self.log_scale.exp()
        images = recipe.shot + recipe.query
        episodes, classifier = [], []
        for number in sorted(set(self.sets[target].tolist())):
            own = self.sets[target] == number
            logits = scale * rows[own] @ proxies.T
            logits = logits.masked_fill(self.sets != number, -math.inf)
            classifier.append(F.cross_entropy(logits, target[own], reduction="sum"))
            episodes.append(_one_shot(rows[own].reshape(-1, images, rows.shape[1]), scale))
        return {
            "episodes": torch.stack(episodes).sum() / len(target),
            "classifier": torch.stack(classifier).sum() / len(target),
        }


def _one_shot(rows: Tensor, scale: Tensor) -> Tensor:
    """The sum over (classes, images, d) unit rows of the cross-entropy with each image in turn as the example."""
    classes, images, _ = rows.shape
    total = rows.new_zeros(())
    for example in range(images):
        others = torch.cat((rows[:, :example], rows[:, example + 1 :]), 1).flatten(0, 1)
        labels = torch.arange(classes, device=rows.device).repeat_interleave(images - 1)
        loss = F.cross_entropy(scale * others @ rows[:, example].T, labels, reduction="sum")
        total = total + loss / (images - 1)
    return total


class ProjectionTrainingTask(EpisodeTrainingTask):
    """See :class:`edgevis.training.task.TrainingTask`."""

    def __init__(
        self, split: ClassSplit, recipe: ProjectionRecipe, deployment: Deployment, *, data: str, seed: int
    ) -> None:
        super().__init__(split, recipe, deployment, data=data, seed=seed)
        self._projection_recipe = recipe
        names = {self._targets[position]: self._set_of(position) for position in split.train}
        self._sets = [names[target] for target in range(self._classes)]
        self._vectors = self._view_vectors(lambda model, image: _encoder(model).pooled(image))
        self._criterion: ProjectionLoss | None = None

    @property
    def model_options(self) -> Mapping[str, int | str]:
        return {"num_classes": 0, "embedding": self._projection_recipe.dimension}

    @property
    def data(self) -> Mapping[str, object]:
        sets = sorted(set(self._sets))
        return {**super().data, **({"sets": sets} if len(sets) > 1 else {})}

    def criterion(self) -> nn.Module:
        self._criterion = ProjectionLoss(self._projection_recipe, self._sets)
        return self._criterion

    def prepare(self, model: nn.Module, *, new: bool, progress: ProgressCallback) -> None:
        """Run the encoder on all images, and begin a new training.

        The projection begins, and is kept as it began; the classifier begins as each class's mean embedding.
        """
        split, views = self._split, self._projection_recipe.views
        keys = [(position, PLAIN) for position in (*split.train, *split.validation, *split.novel)]
        keys += [(position, view) for position in split.train for view in range(views)]
        self._vectors.keep(model, keys, progress)
        if new:
            self._begin(model)

    def _begin(self, model: nn.Module) -> None:
        recipe, criterion = self._projection_recipe, self._criterion
        encoder = _encoder(model)
        projection = encoder.projection
        assert criterion is not None  # noqa: S101 - made before
        assert projection is not None  # noqa: S101 - the model's option
        positions = list(self._split.train)
        vectors = self._plain(model, positions)
        targets = np.array([self._targets[position] for position in positions])
        device = projection.weight.device
        with torch.no_grad():
            if recipe.whiten:
                weight, bias = whitening(
                    vectors, targets, parts=PARTS, shrink=recipe.shrink, dimension=recipe.dimension
                )
                projection.weight.copy_(torch.from_numpy(weight).to(device))
                projection.bias.copy_(torch.from_numpy(bias).to(device))
            criterion.center.copy_(torch.from_numpy(vectors.mean(0)))
            criterion.start_weight.copy_(projection.weight)
            criterion.start_bias.copy_(projection.bias)
            rows = F.normalize(projection(torch.from_numpy(vectors).to(device)), dim=1)
            owners = torch.from_numpy(targets).to(device)
            for number in range(self._classes):
                criterion.classes[number] = F.normalize(rows[owners == number].mean(0), dim=0)

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        recipe, draw = self._projection_recipe, draw_at(self._seed, TRAIN_DRAW, epoch, step, rank)
        positions: list[int] = []
        for name in sorted(set(self._sets)):
            members = [target for target, owner in enumerate(self._sets) if owner == name]
            count = min(len(members), max(2, round(recipe.way * len(members) / self._classes)))
            for target in sample(draw, members, count):
                positions += sample(draw, self._members[target], recipe.shot + recipe.query)
        views = [below(draw, recipe.views) if recipe.views else PLAIN for _ in positions]
        return {
            "position": torch.tensor(positions),
            "view": torch.tensor(views),
            "target": torch.tensor([self._targets[position] for position in positions]),
        }

    def loss(self, model: Any, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        keys = list(zip(batch["position"].tolist(), batch["view"].tolist(), strict=True))
        vectors = torch.from_numpy(self._vectors.of(model, keys)).to(batch["target"].device)
        terms: dict[str, Tensor] = criterion(model.projection, vectors, batch["target"])
        return terms

    def validate(self, model: Any) -> Evaluation | None:
        if not self._split.validation:
            return None
        shot = min(self._projection_recipe.test_shots)
        figures = self._figures(model, self._split.validation, (shot,), VALIDATION_DRAW)
        samples = [value for figure in figures.values() for value in figure.samples]
        mean = {f"{shot}-shot": MetricValue.mean_of(samples)} if len(figures) > 1 else {}
        return Evaluation("training classes set aside", {**mean, **figures})

    def test(self, model: Any) -> Evaluation | None:
        if len({self._set_of(position) for position in self._split.novel}) < 2:
            return super().test(model)
        figures = self._figures(model, self._split.novel, self._projection_recipe.test_shots, TEST_DRAW)
        return Evaluation("novel classes", figures)

    def _figures(self, model: Any, among: Sequence[int], shots: Sequence[int], salt: int) -> dict[str, MetricValue]:
        """Figures of each set of classes, by its name where there are several."""
        names = sorted({self._set_of(position) for position in among})
        figures: dict[str, MetricValue] = {}
        for name in names:
            members = [position for position in among if self._set_of(position) == name]
            found, _ = self._episodes(model, members, shots, salt, picture=False)
            figures |= {f"{name} {key}" if len(names) > 1 else key: figure for key, figure in found.items()}
        return figures

    def _embeddings(self, model: Any, among: Sequence[int]) -> Array:
        """(N, d) float32 unit rows: by the projection of vectors that the frozen encoder gave before."""
        vectors = torch.from_numpy(self._plain(model, among)).to(next(model.parameters()).device)
        rows = model.projected(vectors).float().cpu().numpy()
        require_finite(rows, "the model's embeddings")
        return unit_rows(rows)

    def _check_classes(self) -> None:
        self._require_large_classes()

    def _set_of(self, position: int) -> str:
        name, slash, _ = str(self._labels[position]).partition("/")
        return name if slash else ""

    def _plain(self, model: Any, among: Sequence[int]) -> Array:
        """(N, c) float32: the pooled vectors of images as a predictor sees them."""
        return self._vectors.of(model, [(position, PLAIN) for position in among])


def projection_start(
    entry: ModelEntry, recipe: ProjectionRecipe, weights: Path | None
) -> tuple[Path, Mapping[str, int | str]]:
    """The weights that a projection's training begins with, and their options.

    Args:
        entry: The model's declaration.
        recipe: How it learns.
        weights: Those that were named; None for those that ship with the model.

    Raises:
        InputError: There are none, or they have no such projection and the recipe does not begin one.
    """
    found = weights or shipped_weights(entry)
    if found is None:
        raise InputError(f"no weights of {entry.name!r} ship, and a random encoder is of no use; add --weights FILE")
    provenance = read_provenance(found)
    options = {} if provenance is None else dict(provenance.options)
    dimension = options.get("embedding", 0)
    if not recipe.whiten and dimension != recipe.dimension:
        has = f"a projection to {dimension}" if dimension else "no projection"
        raise InputError(
            f"{found} has {has}, and the recipe goes on with one to {recipe.dimension}; allowed: such weights, or "
            "--set whiten=true to begin it from the data"
        )
    # What the recipe itself decides stays open.
    return found, {name: value for name, value in options.items() if name not in ("embedding", "num_classes")}


def whitening(
    rows: Array, labels: Array, *, parts: Sequence[int], shrink: float, dimension: int
) -> tuple[Array, Array]:
    """The within-class whitening of (N, c) rows on its principal directions, as a linear map.

    Args:
        rows: Pooled vectors.
        labels: (N,) integers from 0.
        parts: Columns of each part of the rows; a part is scaled to a mean variance of 1 first, so that none is held
            down for its size.
        shrink: What is added to the covariance within classes, times its mean variance: without, directions that
            hardly vary here would be blown up.
        dimension: Outputs; beyond c, or the rank of the rows, they are 0.

    Returns:
        Weight (dimension, c) and bias (dimension,) float32: outputs of these rows have mean 0 and, together, variance
        1.
    """
    widths = [part.var(0, dtype=np.float64).mean() for part in np.split(rows, np.cumsum(parts)[:-1], axis=1)]
    scale = np.repeat(1 / np.sqrt(np.maximum(widths, 1e-12)), parts)
    values = rows * scale
    mean = values.mean(0)
    sums = np.zeros((int(labels.max()) + 1, values.shape[1]))
    np.add.at(sums, labels, values)
    within = values - (sums / np.maximum(np.bincount(labels), 1)[:, None])[labels]
    covariance = within.T @ within / len(within)
    size = float(np.trace(covariance)) / len(covariance)
    scales, axes = np.linalg.eigh(covariance + shrink * size * np.eye(len(covariance)))
    whitener = (axes / np.sqrt(scales)) @ axes.T
    whitened = (values - mean) @ whitener
    variances, directions = np.linalg.eigh(whitened.T @ whitened / len(whitened))
    kept = directions[:, ::-1][:, :dimension]
    weight = np.zeros((dimension, values.shape[1]))
    weight[: kept.shape[1]] = (whitener @ kept).T / np.sqrt(variances[::-1][:dimension].sum())
    return (weight * scale).astype(np.float32), (-weight @ mean).astype(np.float32)


def _encoder(model: Any) -> ProjectedEncoder:
    if not isinstance(model, ProjectedEncoder):
        raise InputError(f"a {type(model).__name__} has no projection to train; allowed: efficientnet-lite0")
    return model
