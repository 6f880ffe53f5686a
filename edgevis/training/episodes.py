"""Few-shot classification: fusion of both branches, a linear classifier over all classes, or episodes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from edgevis.data import EpisodeSampler
from edgevis.data.class_split import HELD_DRAW, NOVEL_DRAW, ClassSplit
from edgevis.data.leakage import Side, counted, listed
from edgevis.data.rng import below, draw_at
from edgevis.losses import AttentionFusionLoss, CosineEpisodeLoss
from edgevis.models.recipe import EpisodeRecipe, is_custom_loss
from edgevis.training.custom_loss import custom_loss, custom_terms
from edgevis.training.embed import embeddings
from edgevis.training.images import ImageStore, for_crops
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, Evaluation, MetricValue, ModelOutputs, ViewBatches, Views
from edgevis.training.view_vectors import PLAIN, ViewKey, ViewVectors
from edgevis.training.views import color_jitter, random_horizontal_flip, random_resized_crop
from edgevis.training.visualize import GIVEN, RIGHT, WRONG, Colour, beside, tile
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array, unit_rows
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor

# What each use of the seed draws: no two draw the same numbers.
TRAIN_DRAW, VIEW_DRAW, VALIDATION_DRAW, TEST_DRAW = range(max(NOVEL_DRAW, HELD_DRAW) + 1, 6)


class EpisodeTrainingTask(ViewBatches):
    """See :class:`edgevis.training.task.TrainingTask`; of a model it calls the graph ``encode``."""

    def __init__(
        self,
        split: ClassSplit,
        recipe: EpisodeRecipe,
        deployment: Deployment,
        *,
        data: str,
        seed: int,
    ) -> None:
        super().__init__(Preprocessor(deployment.preprocess))
        self._recipe, self._seed, self._split = recipe, seed, split
        images = split.images
        self._labels = np.asarray(images.labels)
        # Training targets count the training classes alone.
        classes = sorted({images.labels[position] for position in split.train})
        target = {label: index for index, label in enumerate(classes)}
        self._targets = [target.get(label, -1) for label in images.labels]
        self._classes = len(classes)
        self._members: dict[int, list[int]] = {}  # of each class its training images
        for position in split.train:
            self._members.setdefault(self._targets[position], []).append(position)
        spec = deployment.preprocess
        self._size = (spec.height, spec.width)
        self._images = ImageStore(lambda index: for_crops(images[index][0], *self._size))
        self._fitted = ImageStore(lambda index: self._preprocess.fit(images[index][0]))
        self._name = data
        # Too few images are better found now than after the last epoch.
        self._check_classes()
        for among, whole in ((split.validation, False), (split.novel, False), (split.mixed, True)):
            for shot in recipe.test_shots if among else ():
                self._test_sampler(among, shot, 0, whole=whole)

    @property
    def model_options(self) -> Mapping[str, int | str]:
        return {"num_classes": self._classes} if self._recipe.loss in self._recipe.HAS_LOGITS else {}

    @property
    def data(self) -> Mapping[str, object]:
        def classes(positions: Sequence[int]) -> int:
            return len(set(self._labels[list(positions)])) if positions else 0

        split = self._split
        return {
            "source": self._name,
            "training images": len(split.train),
            "training classes": classes(split.train),
            "validation classes": classes(split.validation),
            "novel classes": classes(split.novel),
            "mixed classes": classes(split.mixed),
            **split.notes,
            **({"too small classes left out": left_out} if (left_out := self._left_out()) else {}),
        }

    @property
    def evaluated(self) -> Sequence[Side]:
        """See :class:`edgevis.training.task.DistillableTask`."""
        images, split = self._split.images, self._split
        return [
            Side(name, images.files, [images.names[place] for place in places])
            for name, places in (("validation", split.validation), ("test", (*split.novel, *split.mixed)))
        ]

    @property
    def evaluation_images(self) -> tuple[int, int]:
        """See :class:`edgevis.training.remaining.CountedEvaluations`."""
        split = self._split
        return len(split.validation), len(split.novel) + len(split.mixed)

    @property
    def steps_per_epoch(self) -> int:
        recipe = self._recipe
        if recipe.steps_per_epoch:
            return recipe.steps_per_epoch
        return max(1, len(self._split.train) // self._rows)

    def criterion(self) -> nn.Module:
        recipe = self._recipe
        if recipe.loss == "fusion":
            return AttentionFusionLoss(scale=recipe.scale)
        if recipe.loss == "local":
            return CosineEpisodeLoss(scale=recipe.scale)
        return custom_loss(recipe.loss) if is_custom_loss(recipe.loss) else nn.CrossEntropyLoss()

    def views(self, epoch: int, step: int, rank: int) -> Views:
        positions = self._drawn(epoch, step, rank)
        draw = draw_at(self._seed, VIEW_DRAW, epoch, step, rank)
        images = [self._view(position, draw) for position in positions]
        return Views(images, [self._targets[position] for position in positions])

    def outputs(self, model: Any, image: Tensor, *, logits: bool) -> ModelOutputs:
        if not logits or self._recipe.loss not in self._recipe.HAS_LOGITS:
            return ModelOutputs(model.encode(image))
        if hasattr(model, "branches"):  # AFL-Net: the classifier is of one of them
            features = model(image)
            return ModelOutputs(features.embedding, [features.global_logits], (features.local_embedding,))
        embedding = model.encode(image)
        return ModelOutputs(embedding, [model.classifier(embedding)])

    def terms(self, criterion: nn.Module, outputs: ModelOutputs, batch: Batch, epoch: int) -> dict[str, Tensor]:
        recipe, target = self._recipe, batch["target"]
        sizes = {"way": recipe.way, "shot": recipe.shot, "query": recipe.query}
        if is_custom_loss(recipe.loss):
            return custom_terms(criterion, outputs.embedding, target)
        if recipe.loss == "fusion":
            if not outputs.parts:
                raise InputError("the loss 'fusion' needs a model of two branches: afl-net; allowed: global, local")
            rows = (outputs.logits[0], *outputs.parts, outputs.embedding)
            return {"fusion": in_float32(criterion, *rows, target, **sizes)}
        if recipe.loss == "global":
            return {"global": in_float32(criterion, outputs.logits[0], target)}
        return {"local": in_float32(criterion, outputs.embedding, **sizes)}

    def loss(self, model: Any, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return self.terms(criterion, self.outputs(model, batch["image"], logits=True), batch, epoch)

    def validate(self, model: Any) -> Evaluation | None:
        if not self._split.validation:
            return None
        shot = min(self._recipe.test_shots)  # the hardest setting separates weights best
        figures, _ = self._episodes(model, self._split.validation, (shot,), VALIDATION_DRAW, picture=False)
        return Evaluation("training classes set aside", figures)

    def test(self, model: Any) -> Evaluation | None:
        if not self._split.novel:
            return None
        figures, picture = self._episodes(model, self._split.novel, self._recipe.test_shots, TEST_DRAW, picture=True)
        if self._split.mixed:
            shots = self._recipe.test_shots
            mixed, _ = self._episodes(model, self._split.mixed, shots, TEST_DRAW, picture=False, whole=True)
            figures |= {f"mixed {name}": figure for name, figure in mixed.items()}
        return Evaluation("novel classes", figures, {"episode": picture})

    @property
    def _rows(self) -> int:
        recipe = self._recipe
        return recipe.episodes_per_step * recipe.way * (recipe.shot + recipe.query)

    def _sampler(self, epoch: int) -> EpisodeSampler:
        recipe = self._recipe
        return EpisodeSampler(
            self._labels,
            way=recipe.way,
            shot=recipe.shot,
            query=recipe.query,
            episodes=1 << 30,
            among=self._split.train,
            seed=self._seed,
            epoch=epoch,
        )

    def _check_classes(self) -> None:
        """Require what training episodes need; InputError where they cannot be drawn."""
        if self._recipe.loss != "global":
            self._require_large_classes()
            self._sampler(0)

    def _require_large_classes(self) -> None:
        if small := self._smaller(self._split.train, self._recipe.shot + self._recipe.query, "an episode"):
            raise InputError(
                f"{self._name}: {counted(small, 'class')} too small to train on: {listed(small)}; lower query or shot, "
                "or take them out of the training split"
            )

    def _smaller(self, among: Sequence[int], needed: int, what: str) -> list[str]:
        """Classes with fewer images than needed, and how many they have."""
        sizes = Counter(self._labels[list(among)].tolist())
        return [
            f"{name} ({size} images; {what} needs {needed})" for name, size in sorted(sizes.items()) if size < needed
        ]

    def _left_out(self) -> list[str]:
        """Sentences on classes that are too small for the evaluation's episodes."""
        recipe, sentences = self._recipe, []
        parts = (self._split.validation, (min(recipe.test_shots),)), (self._split.novel, recipe.test_shots)
        for among, shots in parts:
            for shot in shots:
                sentences += self._smaller(among, shot + recipe.test_query, f"{shot}-shot")
        return sentences

    def _drawn(self, epoch: int, step: int, rank: int) -> list[int]:
        """Positions of the batch's images, class-major in each episode."""
        if self._recipe.loss == "global":
            draw, train = draw_at(self._seed, TRAIN_DRAW, epoch, step, rank), self._split.train
            return [train[below(draw, len(train))] for _ in range(self._rows)]
        sampler, count = self._sampler(epoch), self._recipe.episodes_per_step
        first = (rank * self.steps_per_epoch + step) * count
        positions: list[int] = []
        for number in range(first, first + count):
            episode = sampler.episode(number)
            positions += np.concatenate((episode.shots, episode.queries), axis=1).ravel().tolist()
        return positions

    def _view(self, position: int, draw: random.Random) -> Image:
        recipe, (height, width) = self._recipe, self._size
        image = random_resized_crop(self._images[position], draw, height=height, width=width, least=recipe.crop)
        image = random_horizontal_flip(image, draw) if recipe.flip else image
        return color_jitter(image, draw, strength=recipe.jitter)

    def _view_vectors(self, encode: Callable[[Any, Tensor], Tensor]) -> ViewVectors:
        """Of this task's images; a view is the same whenever it is made."""

        def image(key: ViewKey) -> Image:
            position, view = key
            if view == PLAIN:
                return self._preprocess.fit(self._split.images[position][0])  # once: its vector is what is kept
            return self._view(position, draw_at(self._seed, VIEW_DRAW, position, view))

        return ViewVectors(encode, image, self._preprocess)

    def _test_sampler(self, among: Sequence[int], shot: int, salt: int, *, whole: bool) -> EpisodeSampler:
        """Episodes to evaluate with; ``whole`` as of :meth:`_episodes`."""
        recipe = self._recipe
        sizes = Counter(self._labels[list(among)].tolist())
        query = max(1, min(recipe.test_query, min(sizes.values()) - shot)) if whole else recipe.test_query
        return EpisodeSampler(
            self._labels,
            way=min(recipe.test_way, len(sizes)),
            shot=shot,
            query=query,
            episodes=recipe.test_episodes,
            among=among,
            skip_small=True,
            seed=self._seed + salt,
        )

    def _episodes(
        self, model: Any, among: Sequence[int], shots: Sequence[int], salt: int, *, picture: bool, whole: bool = False
    ) -> tuple[dict[str, MetricValue], Image]:
        """Figures by the number of shots, and the picture of the first episode.

        Args:
            model: In evaluation mode.
            among: Images to draw from.
            shots: How many examples of each class; a figure for each.
            salt: Two evaluations draw other episodes.
            picture: Whether to draw it.
            whole: Every class takes part, with fewer queries if one has too few images, as those have half of whose
                images trained. Otherwise it is left out.
        """
        recipe = self._recipe
        place = {position: index for index, position in enumerate(among)}
        rows = self._embeddings(model, among)
        figures: dict[str, MetricValue] = {}
        shown = np.zeros((1, 1, 3), np.uint8)
        for shot in shots:
            sampler = self._test_sampler(among, shot, salt, whole=whole)
            accuracies = []
            for number in range(recipe.test_episodes):
                episode = sampler.episode(number)
                support = rows[[[place[p] for p in row] for row in episode.shots.tolist()]]
                query = rows[[[place[p] for p in row] for row in episode.queries.tolist()]]
                predicted = nearest_prototype(support, query)
                accuracies.append(float((predicted == np.arange(len(predicted))[:, None]).mean()))
                if picture and number == 0 and shot == shots[0]:
                    shown = self._picture(episode.shots, episode.queries, predicted)
            figures[f"{sampler.way}-way {shot}-shot"] = MetricValue.mean_of(accuracies)
        return figures, shown

    def _embeddings(self, model: Any, among: Sequence[int]) -> Array:
        """(N, d) float32 unit rows."""
        images = [self._fitted[position] for position in among]
        return embeddings(model.encode, images, self._preprocess, next(model.parameters()).device)

    def _picture(self, shots: Array, queries: Array, predicted: Array) -> Image:
        """A picture with a row for each class: its examples, then the queries, framed by right or wrong."""
        rows = []
        for number, (learned, queried) in enumerate(zip(shots.tolist(), queries.tolist(), strict=True)):
            examples = [_tile(self._images[position], GIVEN) for position in learned]
            answered = zip(queried, predicted[number].tolist(), strict=True)
            rows.append(
                beside(examples, [_tile(self._images[p], RIGHT if a == number else WRONG) for p, a in answered])
            )
        return np.vstack(rows)


def nearest_prototype(support: Array, query: Array) -> Array:
    """The nearest prototype of each query by cosine.

    Args:
        support: (way, shot, d) unit rows.
        query: (way, queries, d) unit rows.

    Returns:
        (way, queries) int64; -1 where two are equally near, so that the order of the classes decides nothing.
    """
    prototypes = unit_rows(support.mean(1))
    cosines = query @ prototypes.T
    nearest = cosines == cosines.max(-1, keepdims=True)
    predicted: Array = np.where(nearest.sum(-1) == 1, nearest.argmax(-1), -1)
    return predicted


def _tile(image: Image, colour: Colour, side: int = 84) -> Image:
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return tile(image[top : top + edge, left : left + edge], colour, height=side, width=side)
