"""Few-shot segmentation: pairs of a support image with its mask and a query image of the same class.

Data, told apart by their folders: PASCAL-5i (``JPEGImages``) and COCO-20i (``annotations``), each with ``fold``;
``images/`` and ``masks/`` of class ids, with ``index.csv`` where there are splits; or FSS-1000's class folders.
Of the last two a fifth of the classes, drawn from the seed, is novel and only evaluates, and another tenth validates;
a ``fold`` of 0 to 3 makes every fourth class novel instead. The backbone is frozen; what learns is the rest.

An evaluation of PASCAL-5i and FSS-1000 takes the queries in turn, as those benchmarks do; of the others it draws them
by class. mIoU is the mean over the classes that its episodes asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from edgevis.data import (
    ClassMasks,
    SegmentationEpisodes,
    class_masks,
    read_coco20i,
    read_fss1000,
    read_masked_images,
    read_pascal5i,
)
from edgevis.data.draw import draw_at, sample
from edgevis.data.few_shot_masks import FOLDS, ClassMask, Visible, examples_by_class
from edgevis.data.files import open_files
from edgevis.data.segmentation_episodes import Queries
from edgevis.losses import dice_loss, segmentation_loss
from edgevis.metrics import SegmentationScore
from edgevis.models.recipe import Recipe, SupportQueryRecipe, recipe_of
from edgevis.training.images import resized
from edgevis.training.objective import Batch, Evaluation, Measured
from edgevis.training.pictures import RIGHT, Colour, beside, painted
from edgevis.training.precision import in_float32
from edgevis.training.teacher import Teacher
from edgevis.training.views import relit
from runtime.arrays import Array
from runtime.errors import InputError
from runtime.images import Image
from runtime.preprocess import Preprocessor
from runtime.spec import Deployment
from runtime.tasks.few_shot_segment import aggregate_votes

_NOVEL, _VALIDATION = 0.2, 0.1
_VALIDATION_EPISODES = 60
_SHOWN = 5
_EXAMPLE: Colour = (60, 160, 240)
_TRUTH: Colour = (240, 160, 60)
# An image is an example of a class from this share of its pixels on.
_MIN_SHARE = 0.01
_CLASS_DRAW, _VIEW_DRAW, _VALIDATION_DRAW, _TEST_DRAW = range(4)


def objective(
    data: Path,
    recipe: Recipe,
    deployment: Deployment,
    *,
    options: Mapping[str, int | str],
    seed: int,
    teacher: Teacher | None = None,
) -> PairObjective:
    """See :class:`edgevis.training.objective.Task`."""
    own = recipe_of(SupportQueryRecipe, recipe)
    size = (deployment.preprocess.height, deployment.preprocess.width)
    parts = _parts(data, own, seed, size)
    return PairObjective(*parts, own, deployment, data=data.name, seed=seed, queries=_queries(data))


class PairObjective:
    """See :class:`edgevis.training.objective.Objective`; of a model it calls ``support`` and ``query``."""

    def __init__(
        self,
        train: ClassMasks,
        validation: ClassMasks | None,
        test: ClassMasks,
        recipe: SupportQueryRecipe,
        deployment: Deployment,
        *,
        data: str,
        seed: int,
        queries: Queries,
    ) -> None:
        self._train, self._validation, self._test = train, validation, test
        self._recipe, self._seed, self._name, self._queries = recipe, seed, data, queries
        self._preprocess = Preprocessor(deployment.preprocess)
        spec = deployment.preprocess
        self._size = (spec.height, spec.width)
        self._kept: dict[tuple[int, int], tuple[Image, Array]] = {}

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
        }

    @property
    def steps_per_epoch(self) -> int:
        return self._recipe.steps_per_epoch or max(1, len(self._train) // self._recipe.batch)

    def criterion(self) -> nn.Module:
        return nn.Identity()

    def batch(self, epoch: int, step: int, rank: int) -> Batch:
        recipe = self._recipe
        episodes = SegmentationEpisodes(self._train, shot=1, episodes=1 << 30, seed=self._seed, epoch=epoch)
        first = (rank * self.steps_per_epoch + step) * recipe.batch
        draw = draw_at(self._seed, _VIEW_DRAW, epoch, step, rank)
        images: list[Image] = []
        masks: list[Array] = []
        for number in range(first, first + recipe.batch):
            class_id, query, (support,) = episodes.draw(number)
            mirror = recipe.flip and draw.random() < 0.5
            for position in (query, support):
                image, mask = self._example(position, class_id)
                image = relit(image, draw, strength=recipe.photometric)
                images.append(np.ascontiguousarray(image[:, ::-1]) if mirror else image)
                masks.append(np.ascontiguousarray(mask[:, ::-1]) if mirror else mask)
        tensor, marked = torch.from_numpy(self._preprocess(images)), torch.from_numpy(np.stack(masks))
        return {
            "query": tensor[0::2],
            "support": tensor[1::2],
            "support_mask": marked[1::2],
            "query_mask": marked[0::2],
        }

    def loss(self, model: Any, criterion: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        logits = model(batch["query"], batch["support"], batch["support_mask"])
        terms = {"cross-entropy": in_float32(segmentation_loss, logits, batch["query_mask"])}
        if self._recipe.dice_weight:
            terms["dice"] = self._recipe.dice_weight * in_float32(dice_loss, logits, batch["query_mask"])
        return terms

    def validate(self, model: Any) -> Evaluation | None:
        if self._validation is None:
            return None
        figures, _, _ = self._scored(model, self._validation, 1, _VALIDATION_EPISODES, _VALIDATION_DRAW)
        return Evaluation("classes set aside", {"mIoU": figures["1-shot mIoU"]})

    def test(self, model: Any) -> Evaluation | None:
        figures: dict[str, Measured] = {}
        pictures: dict[str, Image] = {}
        fewest = len(self._test.members)
        for shot in self._recipe.test_shots:
            found, picture, drawn = self._scored(model, self._test, shot, self._recipe.test_episodes, _TEST_DRAW)
            figures |= found
            pictures[f"{shot}-shot"] = picture
            fewest = min(fewest, drawn)
        novel = len(self._test.members)
        split = "novel classes" if fewest == novel else f"novel classes, of which {fewest} of {novel} were asked for"
        return Evaluation(split, figures, pictures)

    def _example(self, position: int, class_id: int) -> tuple[Image, Array]:
        """A training image and its mask at the network's size, as the runtime makes them."""
        if (position, class_id) not in self._kept:
            self._kept[position, class_id] = self._fitted(self._train.read(position, class_id))
        return self._kept[position, class_id]

    def _fitted(self, example: ClassMask) -> tuple[Image, Array]:
        height, width = self._size
        mask = cv2.resize(example.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
        return self._preprocess.fit(example.image), mask

    def _scored(
        self, model: Any, data: ClassMasks, shot: int, count: int, salt: int
    ) -> tuple[dict[str, Measured], Image, int]:
        """The figures, the picture of some episodes, and how many classes were asked for."""
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
            votes = logits.float().cpu().numpy().transpose(1, 0, 2, 3, 4)
            found = aggregate_votes(votes, episode.query.mask.shape)[0]
            score.add(found, episode.query.mask, episode.class_id, episode.query.ignore)
            if len(shown) < _SHOWN:
                shown.append(_drawn(episode.supports, episode.query, found))
        samples = {name: tuple(values.tolist()) for name, values in score.samples().items()}
        values_by_name = {"mIoU": score.mean_iou, "FB-IoU": score.fb_iou}
        figures = {f"{shot}-shot {name}": Measured(value, samples[name]) for name, value in values_by_name.items()}
        return figures, np.vstack(shown), len(score.class_iou)


def _parts(
    data: Path, recipe: SupportQueryRecipe, seed: int, size: tuple[int, int]
) -> tuple[ClassMasks, ClassMasks | None, ClassMasks]:
    """What trains, what validates and what evaluates a network whose images are of that (height, width)."""
    names = open_files(data).names
    if any(name.startswith(("JPEGImages/", "annotations/")) for name in names):
        read = read_pascal5i if any(name.startswith("JPEGImages/") for name in names) else read_coco20i
        if recipe.fold is None:
            raise InputError(f"{data} is divided into folds: --set fold=0 to {FOLDS - 1}")
        # As in the papers, the checkpoint is chosen by the fold's own classes: there is no third part.
        test = read(data, fold=recipe.fold, split="val")
        return read(data, fold=recipe.fold, split="train"), test, test
    shots = max(recipe.test_shots)
    if any(name.startswith("masks/") for name in names):
        splits = ("train", "val") if "index.csv" in names else (None, None)
        visible = Visible(min_share=_MIN_SHARE, size=size)
        sides = [read_masked_images(data, split=split) for split in splits]
        counts = [examples_by_class(side, visible) for side in sides]
        known = sorted(value for value in counts[0] if min(count[value] for count in counts) > shots)
        if len(known) < 2:
            raise InputError(
                f"{data} has {len(known)} classes of which {shots + 1} or more images of each split show {visible} or "
                "more; allowed: 2 or more classes, one to train and one to evaluate. test_shots and side of the model "
                "decide, too"
            )
        trained, held, novel = _divided(known, recipe.fold, seed)
        return (
            class_masks(sides[0], class_ids=trained, visible=visible),
            class_masks(sides[0], class_ids=held, visible=visible) if held else None,
            class_masks(sides[1], class_ids=novel, visible=visible),
        )
    classes = sorted({name.partition("/")[0] for name in names if name.endswith(".jpg") and name.count("/") == 1})
    groups = _divided(list(range(len(classes))), recipe.fold, seed)
    trained_part, held_part, novel_part = (
        read_fss1000(data, classes=[classes[index] for index in group]) if group else None for group in groups
    )
    if trained_part is None or novel_part is None:
        raise InputError(f"{data} has {len(classes)} classes; allowed: 5 or more, to train and to evaluate")
    return trained_part, held_part, novel_part


def _queries(data: Path) -> Queries:
    names = open_files(data).names
    return "by class" if any(name.startswith(("annotations/", "masks/")) for name in names) else "in turn"


def _divided(classes: Sequence[int], fold: int | None, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Classes to train on, to validate and to evaluate."""
    if fold is not None and fold >= FOLDS:
        raise InputError(f"fold is {fold}; allowed: 0 to {FOLDS - 1}, or null for classes drawn from the seed")
    order = sample(draw_at(seed, _CLASS_DRAW), list(classes), len(classes))
    novel = order[: max(1, round(_NOVEL * len(order)))] if fold is None else list(classes[fold::FOLDS])
    rest = [value for value in order if value not in novel]
    held = rest[: round(_VALIDATION * len(classes))]
    trained = [value for value in rest if value not in held]
    if not trained:
        raise InputError(f"{len(classes)} classes have images enough; allowed: 2 or more, to train and to evaluate")
    return sorted(trained), sorted(held), sorted(novel)


def _drawn(supports: Sequence[ClassMask], query: ClassMask, found: Array, side: int = 160) -> Image:
    """The examples with their masks; the query with its true mask, and with what was found."""

    def seen(image: Image, mask: Array, colour: Colour) -> Image:
        return resized(painted(image, mask, colour), side, side)

    given = [seen(support.image, support.mask, _EXAMPLE) for support in supports]
    return beside(given, [seen(query.image, query.mask, _TRUTH), seen(query.image, found, RIGHT)])
