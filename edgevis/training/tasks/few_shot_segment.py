"""Few-shot segmentation: pairs of a support image with its mask and a query image of the same class.

Data: PASCAL-5i, COCO-20i, FSS-1000, a sample of COCO, or ``images/`` and ``masks/`` of class ids;
:mod:`edgevis.data.few_shot_split` says what trains and what evaluates. The backbone is frozen; what learns is the rest.

An evaluation of PASCAL-5i and FSS-1000 takes the queries in turn, as those benchmarks do; of the others it draws them
by class. mIoU is the mean over the classes that its episodes asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from edgevis.data import ClassMasks, SegmentationEpisodes
from edgevis.data.few_shot_masks import ClassMask
from edgevis.data.few_shot_split import CLASS_DRAW, FewShotSplit, split_masked_classes
from edgevis.data.rng import draw_at
from edgevis.data.segmentation_episodes import Queries
from edgevis.losses import dice_loss, segmentation_loss
from edgevis.metrics import SegmentationScore
from edgevis.models.recipe import FewShotSegmentationRecipe, is_custom_loss, recipe_of
from edgevis.training.custom_loss import custom_loss, custom_terms
from edgevis.training.finite import require_finite
from edgevis.training.images import resized
from edgevis.training.precision import in_float32
from edgevis.training.task import Batch, Evaluation, MetricValue, TaskRequest
from edgevis.training.views import color_jitter
from edgevis.training.visualize import RIGHT, Colour, beside, painted
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.images.decode import Image
from runtime.images.preprocess import Preprocessor
from runtime.tasks.few_shot_segment import aggregate_votes

_VALIDATION_EPISODES = 60
# Training images that stay decoded, at the network's size: 0.6 MB each at 289 x 289.
_KEPT = 2048
_SHOWN = 5
_EXAMPLE: Colour = (60, 160, 240)
_TRUTH: Colour = (240, 160, 60)
_VIEW_DRAW, _VALIDATION_DRAW, _TEST_DRAW = range(CLASS_DRAW + 1, 4)


def training_task(request: TaskRequest) -> FewShotSegmentationTrainingTask:
    """See :class:`edgevis.training.task.TaskFactory`."""
    recipe = recipe_of(FewShotSegmentationRecipe, request.recipe)
    split = split_masked_classes(
        request.data,
        fold=recipe.fold,
        shots=max(recipe.test_shots),
        size=(request.deployment.preprocess.height, request.deployment.preprocess.width),
        seed=request.seed,
        check=request.check,
        where=recipe.where,
    )
    return FewShotSegmentationTrainingTask(split, recipe, request.deployment, data=request.data.name, seed=request.seed)


class FewShotSegmentationTrainingTask:
    """See :class:`edgevis.training.task.TrainingTask`; of a model it calls ``support`` and ``query``."""

    def __init__(
        self,
        split: FewShotSplit,
        recipe: FewShotSegmentationRecipe,
        deployment: Deployment,
        *,
        data: str,
        seed: int,
    ) -> None:
        self._train, self._validation, self._test = split.train, split.validation, split.test
        self._queries: Queries = split.queries
        self._notes = split.notes
        self._recipe, self._seed, self._name = recipe, seed, data
        self._preprocess = Preprocessor(deployment.preprocess)
        spec = deployment.preprocess
        self._size = (spec.height, spec.width)
        self._example = functools.lru_cache(_KEPT)(self._example_of)

    @property
    def model_options(self) -> Mapping[str, int | str]:
        return {}

    @property
    def data(self) -> Mapping[str, object]:
        return {
            "source": self._name,
            "training images": len(self._train),
            "training classes": len(self._train.members),
            "validation classes": 0 if self._validation is None else len(self._validation.members),
            "novel classes": len(self._test.members),
            "test images": len(self._test),
            **self._notes,
        }

    @property
    def evaluation_images(self) -> tuple[int, int]:
        """See :class:`edgevis.training.remaining.CountedEvaluations`."""
        validated = 0 if self._validation is None else 2 * _VALIDATION_EPISODES
        return validated, sum(shot + 1 for shot in self._recipe.test_shots) * self._recipe.test_episodes

    @property
    def steps_per_epoch(self) -> int:
        return self._recipe.steps_per_epoch or max(1, len(self._train) // self._recipe.batch)

    def criterion(self) -> nn.Module:
        return custom_loss(self._recipe.loss) if is_custom_loss(self._recipe.loss) else nn.Identity()

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        recipe = self._recipe
        episodes = SegmentationEpisodes(
            self._train,
            shot=1,
            episodes=1 << 30,
            seed=self._seed,
            epoch=epoch,
            class_power=recipe.class_power,
        )
        first = (rank * self.steps_per_epoch + step) * recipe.batch
        draw = draw_at(self._seed, _VIEW_DRAW, epoch, step, rank)
        images: list[Image] = []
        masks: list[Array] = []
        counted: list[Array] = []
        for number in range(first, first + recipe.batch):
            class_id, query, (support,) = episodes.draw(number)
            mirror = recipe.flip and draw.random() < 0.5
            for position in (query, support):
                image, mask, counts = self._example(position, class_id)
                image = color_jitter(image, draw, strength=recipe.photometric)
                images.append(np.ascontiguousarray(image[:, ::-1]) if mirror else image)
                masks.append(np.ascontiguousarray(mask[:, ::-1]) if mirror else mask)
                counted.append(np.ascontiguousarray(counts[:, ::-1]) if mirror else counts)
        tensor, marked = torch.from_numpy(self._preprocess(images)), torch.from_numpy(np.stack(masks))
        return {
            "query": tensor[0::2],
            "support": tensor[1::2],
            "support_mask": marked[1::2],
            "query_mask": marked[0::2],
            **({} if recipe.learn_ignored else {"query_counted": torch.from_numpy(np.stack(counted[0::2]))}),
        }

    def loss(self, model: Any, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        logits = model(batch["query"], batch["support"], batch["support_mask"])
        logits, first = logits if isinstance(logits, tuple) else (logits, None)
        if is_custom_loss(self._recipe.loss):
            return custom_terms(criterion, logits, batch["query_mask"])
        truth = [batch[name] for name in ("query_mask", "query_counted") if name in batch]
        terms = {"cross-entropy": in_float32(segmentation_loss, logits, *truth)}
        if self._recipe.dice_weight:
            terms["dice"] = self._recipe.dice_weight * in_float32(dice_loss, logits, *truth)
        if first is not None and self._recipe.first_pass_weight:
            of_first = in_float32(segmentation_loss, first, *truth)
            of_first = of_first + self._recipe.dice_weight * in_float32(dice_loss, first, *truth)
            terms["first pass"] = self._recipe.first_pass_weight * of_first
        return terms

    def validate(self, model: Any) -> Evaluation | None:
        if self._validation is None:
            return None
        figures, _, _ = self._scored(model, self._validation, 1, _VALIDATION_EPISODES, _VALIDATION_DRAW)
        return Evaluation("classes set aside", {"mIoU": figures["1-shot mIoU"]})

    def test(self, model: Any) -> Evaluation | None:
        figures: dict[str, MetricValue] = {}
        pictures: dict[str, Image] = {}
        fewest = len(self._test.members)
        for shot in self._recipe.test_shots:
            metrics, picture, drawn = self._scored(model, self._test, shot, self._recipe.test_episodes, _TEST_DRAW)
            figures |= metrics
            pictures[f"{shot}-shot"] = picture
            fewest = min(fewest, drawn)
        novel = len(self._test.members)
        split = "novel classes" if fewest == novel else f"novel classes, of which {fewest} of {novel} were asked for"
        return Evaluation(split, figures, pictures)

    def _example_of(self, position: int, class_id: int) -> tuple[Image, Array, Array]:
        """A training image and its mask at the network's size, as the runtime makes them, and which pixels count."""
        example = self._train.read(position, class_id)
        height, width = self._size
        ignored = cv2.resize(example.ignore.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        return *self._fitted(example), ignored == 0

    def _fitted(self, example: ClassMask) -> tuple[Image, Array]:
        height, width = self._size
        mask = cv2.resize(example.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
        return self._preprocess.fit(example.image), mask

    def _scored(
        self, model: Any, data: ClassMasks, shot: int, count: int, salt: int
    ) -> tuple[dict[str, MetricValue], Image, int]:
        """The figures, the picture of some episodes, and the number of classes drawn."""
        device = next(model.parameters()).device
        episodes = SegmentationEpisodes(data, shot=shot, episodes=count, queries=self._queries, seed=self._seed + salt)
        score = SegmentationScore(tuple(data.members))
        shown: list[Image] = []
        for number in range(count):
            episode = episodes[number]
            fitted = [self._fitted(support) for support in episode.supports]
            images = torch.from_numpy(self._preprocess([image for image, _ in fitted])).to(device)
            masks = torch.from_numpy(np.stack([mask for _, mask in fitted])).to(device)
            query = torch.from_numpy(self._preprocess([episode.query.image])).to(device)
            logits = model.query(query, *model.support(images, masks))
            values = logits.float().cpu().numpy()
            require_finite(values, "the model's logits")
            votes = values.transpose(1, 0, 2, 3, 4)
            predicted = aggregate_votes(votes, episode.query.mask.shape)[0]
            score.add(predicted, episode.query.mask, episode.class_id, episode.query.ignore)
            if len(shown) < _SHOWN:
                shown.append(_drawn(episode.supports, episode.query, predicted))
        samples = {name: tuple(values.tolist()) for name, values in score.samples().items()}
        values_by_name = {"mIoU": score.mean_iou, "FB-IoU": score.fb_iou}
        figures = {f"{shot}-shot {name}": MetricValue(value, samples[name]) for name, value in values_by_name.items()}
        return figures, np.vstack(shown), len(score.class_iou)


def _drawn(supports: Sequence[ClassMask], query: ClassMask, predicted: Array, side: int = 160) -> Image:
    """The examples with their masks; the query with its true and its predicted mask."""

    def seen(image: Image, mask: Array, colour: Colour) -> Image:
        return resized(painted(image, mask, colour), side, side)

    examples = [seen(support.image, support.mask, _EXAMPLE) for support in supports]
    return beside(examples, [seen(query.image, query.mask, _TRUTH), seen(query.image, predicted, RIGHT)])
