"""Pre-training by momentum contrast: pictures without labels, such as a camera's own frames."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from edgevis.data.files import open_files
from edgevis.data.rng import draw_at, sample
from edgevis.losses import MomentumContrast, projection_head
from edgevis.models.recipe_moco import MomentumContrastRecipe
from edgevis.training.embed import embeddings, recognised
from edgevis.training.images import ImageStore, for_crops
from edgevis.training.task import Batch, Evaluation, MetricValue
from edgevis.training.views import color_jitter, random_horizontal_flip, random_resized_crop
from runtime.bundle.spec import Deployment
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.images.folders import images_of
from runtime.images.preprocess import Preprocessor

_KEY = "key_image"
_HELD_DRAW, _TRAIN_DRAW, _VALIDATION_DRAW = range(3)
_SIGMA = (0.1, 2.0)
# Pictures of a group, for a batch norm's variance; pictures held out, for a choice between them.
_LEAST = 2


class MomentumContrastTask:
    """See :class:`edgevis.training.task.TrainingTask`; of a model it calls its first graph.

    Args:
        data: A folder or zip with pictures at any depth.
        recipe: How it learns.
        deployment: The encoder's.
        create: Makes an encoder of the same structure, with any weights.
        seed: Of views and of which pictures validate.

    Raises:
        SourceError: The data cannot be read.
        InputError: There are fewer pictures than the recipe needs.
    """

    def __init__(
        self,
        data: Path,
        recipe: MomentumContrastRecipe,
        deployment: Deployment,
        *,
        create: Callable[[], nn.Module],
        seed: int,
    ) -> None:
        self._recipe, self._create, self._seed, self._name = recipe, create, seed, data.name
        graph = deployment.graphs[0]
        self._graph, self._width = graph.name, int(graph.outputs[0].shape[-1])
        self._preprocess = Preprocessor(deployment.preprocess)
        self._size = (deployment.preprocess.height, deployment.preprocess.width)
        files = open_files(data)
        names = images_of(files.names)
        order = sample(draw_at(seed, _HELD_DRAW), range(len(names)), len(names))
        held = round(recipe.held_out * len(names))
        self._held, self._trained = sorted(order[:held]), sorted(order[held:])
        if len(self._trained) < max(recipe.queue, recipe.batch):
            raise InputError(
                f"{data} has {len(self._trained)} pictures to learn from, {held} are held out; allowed: at least queue "
                f"and batch, {recipe.queue} and {recipe.batch}; or smaller values, such as --set queue="
                f"{max(len(self._trained) // recipe.batch, 1) * recipe.batch}"
            )
        if recipe.queue % recipe.batch or recipe.batch % recipe.groups or recipe.batch // recipe.groups < _LEAST:
            raise InputError(
                f"recipe: queue, batch and groups are {recipe.queue}, {recipe.batch} and {recipe.groups}; allowed: a "
                f"batch that divides the queue and is divided by the groups, of {_LEAST} pictures or more each"
            )
        self._images = ImageStore(lambda number: for_crops(files.image(names[number]), *self._size))
        self._steps = recipe.steps_per_epoch or max(1, len(self._trained) // recipe.batch)
        self._criterion: _Criterion | None = None

    @property
    def model_options(self) -> Mapping[str, int | str]:
        return {}

    @property
    def data(self) -> Mapping[str, object]:
        told = {"training images": len(self._trained), "validation images": len(self._held)}
        return {"source": self._name, **told}

    @property
    def evaluation_images(self) -> tuple[int, int]:
        """See :class:`edgevis.training.remaining.CountedEvaluations`."""
        return 2 * len(self._held), 0

    @property
    def steps_per_epoch(self) -> int:
        return self._steps

    def criterion(self) -> nn.Module:
        """The head, the key encoder and the queue: all of it goes into checkpoints, none into the weights."""
        recipe = self._recipe

        def head() -> nn.Module:
            return projection_head(self._width, recipe.dimension, layers=recipe.head_layers)

        contrast = MomentumContrast(
            _Projected(self._create(), self._graph, head()),
            dimension=recipe.dimension,
            queue=recipe.queue,
            momentum=recipe.key_momentum,
            temperature=recipe.temperature,
            groups=recipe.groups,
        )
        self._criterion = _Criterion(head(), contrast)
        return self._criterion

    def begin(self, model: nn.Module) -> None:
        """See :class:`edgevis.training.task.StartDependent`: the key encoder begins as the query encoder does."""
        if self._criterion is not None:
            self._criterion.contrast.begin(_Projected(model, self._graph, self._criterion.head))

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        draw = draw_at(self._seed, _TRAIN_DRAW, epoch, step, rank)
        chosen = sample(draw, self._trained, self._recipe.batch)
        first, second = ([self._view(number, draw) for number in chosen] for _ in range(2))
        return {name: torch.from_numpy(self._preprocess(views)) for name, views in (("image", first), (_KEY, second))}

    def loss(self, model: nn.Module, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        own = cast(_Criterion, criterion)
        query = _Projected(model, self._graph, own.head)
        return {"momentum-contrast": own.contrast(query, batch["image"], batch[_KEY])[0]}

    def validate(self, model: nn.Module) -> Evaluation | None:
        """The share of pictures held out whose view has the nearest other view of the same picture."""
        if len(self._held) < _LEAST:
            return None
        draw = draw_at(self._seed, _VALIDATION_DRAW)
        views = [[self._view(number, draw) for number in self._held] for _ in range(2)]
        device = next(model.parameters()).device
        first, second = (embeddings(getattr(model, self._graph), part, self._preprocess, device) for part in views)
        figure = MetricValue.mean_of(recognised(first, second))
        return Evaluation("pictures held out, two views each", {"rank-1": figure})

    def test(self, model: nn.Module) -> Evaluation | None:
        return self.validate(model)

    def _view(self, number: int, draw: random.Random) -> Image:
        recipe, (height, width) = self._recipe, self._size
        view = random_resized_crop(self._images[number], draw, height=height, width=width, least=recipe.crop)
        view = color_jitter(random_horizontal_flip(view, draw), draw, strength=recipe.jitter)
        if draw.random() < recipe.grey:
            view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR).astype(np.uint8)
        if draw.random() < recipe.blur:
            least, most = _SIGMA
            view = cv2.GaussianBlur(view, (0, 0), least + (most - least) * draw.random()).astype(np.uint8)
        return view


class _Criterion(nn.Module):
    """What is trained beside the encoder, and what follows it."""

    def __init__(self, head: nn.Module, contrast: MomentumContrast) -> None:
        super().__init__()
        self.head, self.contrast = head, contrast


class _Projected(nn.Module):
    """A graph of a model, and the head behind it."""

    def __init__(self, model: nn.Module, graph: str, head: nn.Module) -> None:
        super().__init__()
        self.model, self.graph, self.head = model, graph, head

    def forward(self, image: Tensor) -> Any:
        return self.head(getattr(self.model, self.graph)(image))
