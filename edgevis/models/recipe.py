"""Training recipes as data: the common fields, and those of each task.

A model file gives its recipes by name: ``paper`` is what its paper states, with what it leaves open filled in and said
so; ``small`` suits a CPU and some hundred images. Every value can be set from the command line.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from edgevis.models.allowed import SWITCH, TEXT, Allowed, number, one_of, or_null, several, whole
from runtime.common.json_data import from_json, to_json
from runtime.errors import InputError

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "step", "cosine"]


MOST = 1_000_000_000
"""The limit for counts."""

LARGEST = 1e30
"""The limit for weights and scales: beyond any useful value, and within float32."""

_CUSTOM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_custom_loss(name: str) -> bool:
    """Whether a recipe's loss is ``package.module:NAME``, see :mod:`edgevis.training.custom_loss`."""
    return _CUSTOM.fullmatch(name) is not None


def known_losses(*known: str) -> Allowed:
    """A loss of the task, or a custom one."""
    return Allowed(
        f"{', '.join(known)}, or package.module:NAME",
        lambda value: isinstance(value, str) and (value in known or is_custom_loss(value)),
    )


def _rising(epochs: Sequence[int]) -> bool:
    return all(first < second for first, second in itertools.pairwise(epochs))


def _different(values: Sequence[int]) -> bool:
    return len(set(values)) == len(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The fields that all recipes share.

    Attributes:
        loss: A loss that the task knows, or one's own as ``package.module:NAME``; see
            :mod:`edgevis.training.custom_loss`.
        epochs: The number of epochs; 0 trains nothing and evaluates the initial weights.
        steps_per_epoch: Optimiser steps in each; 0 is one pass over the training data, where the task has such a thing.
        optimizer: ``sgd`` with momentum, ``adam`` or ``adamw``.
        learning_rate: The peak of the schedule.
        momentum: Of SGD; of Adam beta1, the decay of its mean of gradients.
        adam_beta2: Adam's decay of its mean of squared gradients.
        weight_decay: For all parameters, as the papers' code has it.
        decay_vectors: Whether it holds for biases and the scales and shifts of batch norm, too.
        schedule: ``constant``; ``step`` multiplies by ``decay`` at each of ``milestones``; ``cosine`` is half a cosine
            down to zero. It counts epochs from 0, warm-up included.
        milestones: Epochs.
        decay: Factor at each milestone.
        warm_up_epochs: In these the learning rate rises linearly from ``warm_up_from`` times its peak.
        warm_up_from: 0..1.
        clip_norm: The largest norm of the gradient; 0 is any.
        ema_decay: Of the exponential moving average of the weights, which is then what is validated and kept; 0 keeps
            the weights themselves. The average begins shorter: after n steps with a decay of (1 + n) / (10 + n).
        validate_every: Epochs between two validations, by which the best checkpoint is chosen; 0 keeps the last.
        frozen: Prefixes of the names of parameters that stay as they are, such as ``stem`` or ``blocks.0``; their batch
            norms keep their statistics.
        int8_epochs: The last epochs, in which layers compute with values and weights rounded as INT8 engines do; the
            weights are chosen from these epochs alone. See :mod:`edgevis.training.int8`.
        frozen_norms: Keep all batch norms with their statistics as they are: those of a few kinds of pictures harm a
            network that was trained on many.
    """

    loss: str = ""
    epochs: int
    steps_per_epoch: int = 0
    optimizer: Optimizer = "sgd"
    learning_rate: float
    momentum: float = 0.9
    adam_beta2: float = 0.999
    weight_decay: float = 0.0
    decay_vectors: bool = True
    schedule: Schedule = "constant"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    warm_up_epochs: int = 0
    warm_up_from: float = 0.1
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    validate_every: int = 1
    int8_epochs: int = 0
    frozen: tuple[str, ...] = ()
    frozen_norms: bool = False

    BEGINS_TRAINED: ClassVar[bool] = False
    """Whether it goes on from trained weights: those that ship unless others are named. They are validated before the
    first epoch, and kept where no epoch is better."""

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": TEXT,
        "epochs": whole(0, MOST),
        "steps_per_epoch": whole(0, MOST),
        "learning_rate": number(0, 1e38, above=True),
        "momentum": number(0, 1, below=True),
        "adam_beta2": number(0, 1, below=True),
        "weight_decay": number(0, LARGEST),
        "milestones": several(whole(0, MOST), least=0, more=", rising", holds=_rising),
        "decay": number(0, LARGEST),
        "warm_up_epochs": whole(0, MOST),
        "warm_up_from": number(0, 1),
        "clip_norm": number(0, LARGEST),
        "ema_decay": number(0, 1, below=True),
        "validate_every": whole(0, MOST),
        "int8_epochs": whole(0, MOST),
        "frozen": several(TEXT, least=0),
    }
    """The allowed values of fields whose type does not say them."""

    def __post_init__(self) -> None:
        for item in fields(self):
            _refuse(type(self), item.name, getattr(self, item.name))

    @classmethod
    def allowed(cls) -> dict[str, Allowed]:
        """The allowed values of each field."""
        stated = {name: rule for kind in reversed(cls.__mro__) for name, rule in vars(kind).get("ALLOWED", {}).items()}
        return {item.name: stated.get(item.name) or _by_type(_hints(cast(Any, cls))[item.name]) for item in fields(cls)}

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with other values for some fields.

        Raises:
            InputError: There is no such field, or it takes no such value.
        """
        known = self.allowed()
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InputError(f"recipe: unknown field {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
        for name, value in values.items():
            _refuse(type(self), name, value)
        return from_json(type(self), {**to_json(self), **values}, "recipe")

    def rate_factor(self, name: str) -> float:
        """What :meth:`rate` is multiplied by for the parameter of that name."""
        return 1.0

    def rate(self, progress: float) -> float:
        """The learning rate after that many epochs; fractions are positions within an epoch."""
        if progress < self.warm_up_epochs:
            share = progress / self.warm_up_epochs
            return self.learning_rate * (self.warm_up_from + (1 - self.warm_up_from) * share)
        if self.schedule == "step":
            return self.learning_rate * self.decay ** sum(progress >= epoch for epoch in self.milestones)
        if self.schedule == "cosine":
            left = (progress - self.warm_up_epochs) / max(self.epochs - self.warm_up_epochs, 1e-9)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(left, 1.0)))
        return self.learning_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationRecipe(Recipe):
    """The fields of recipes that support distillation; without a teacher they are not used.

    Attributes:
        distill_embedding: Weight of 1 - cosine between the student's embedding and the teacher's.
        distill_logits: Weight of the divergence from the teacher's logits, which must be of the same classes.
        temperature: Of these logits; see :class:`edgevis.losses.DistillationLoss`.
    """

    HAS_LOGITS: ClassVar[frozenset[str]] = frozenset()
    """The losses for which the model computes logits of the training classes."""

    distill_embedding: float = 1.0
    distill_logits: float = 0.0
    temperature: float = 4.0

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "distill_embedding": number(0, LARGEST),
        "distill_logits": number(0, LARGEST),
        "temperature": number(0, LARGEST, above=True),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierRecipe(DistillationRecipe):
    """The fields of recipes with a classifier over training classes, which also answers pictures without labels.

    Attributes:
        unlabelled_weight: Of their term, :class:`edgevis.losses.BatchNuclearNormLoss`; without such pictures it is not
            used.
        unlabelled_batch: So many of them in each batch.
        unlabelled_reduction, unlabelled_norm: Of the term.
        flip: Whether images are mirrored half the time.
        jitter: Strength of colour jitter, 0..1.
    """

    unlabelled_weight: float = 1.0
    unlabelled_batch: int = 32
    unlabelled_reduction: Literal["batch", "mean", "sum"] = "batch"
    unlabelled_norm: Literal["nuclear", "fast", "frobenius"] = "nuclear"
    flip: bool = True
    jitter: float = 0.0

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "unlabelled_weight": number(0, LARGEST),
        "unlabelled_batch": whole(2, MOST),
        "jitter": number(0, 1),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRecipe(ClassifierRecipe):
    """Few-shot classification.

    Attributes:
        loss: ``fusion`` is AFL-Net's three terms, ``global`` a linear classifier over all training classes,
            ``local`` episodes by cosine to prototypes. One's own takes the embeddings of the episodes' images (B, d)
            and their classes (B,).
        way, shot, query: Of the episodes that it trains on.
        episodes_per_step: Episodes in a batch; ``global`` draws as many images.
        scale: Where the learnable scale of the cosines starts.
        held_out: The share of the training classes that only validates.
        mixed: Train on half of the images of each class, and evaluate also on tasks that mix these classes with novel
            ones (:func:`edgevis.data.mixed_split`).
        test_way, test_shots, test_query, test_episodes: Of the evaluation.
        crop: The smallest share of the area that a random crop keeps; 1 crops nothing.
    """

    HAS_LOGITS: ClassVar[frozenset[str]] = frozenset({"fusion", "global"})

    loss: str
    way: int = 5
    shot: int = 1
    query: int = 15
    episodes_per_step: int = 4
    scale: float = 10.0
    held_out: float = 0.15
    mixed: bool = False
    test_way: int = 5
    test_shots: tuple[int, ...] = (1, 5)
    test_query: int = 10
    test_episodes: int = 1000
    jitter: float = 0.4
    crop: float = 0.5

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": known_losses("fusion", "global", "local"),
        "way": whole(2, MOST),
        "shot": whole(1, MOST),
        "query": whole(1, MOST),
        "episodes_per_step": whole(1, MOST),
        "scale": number(0, LARGEST, above=True),
        "held_out": number(0, 1, below=True),
        "test_way": whole(2, MOST),
        "test_shots": several(whole(1, MOST), more=", none twice", holds=_different),
        "test_query": whole(1, MOST),
        "test_episodes": whole(1, MOST),
        "crop": number(0, 1, above=True),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReIDRecipe(ClassifierRecipe):
    """Person Re-ID.

    Attributes:
        loss: ``reid`` is the papers' sum of cross-entropy and triplets. One's own takes the embeddings (B, d) and the
            persons (B,) of P x K images.
        identities, images: P identities with K images each in a batch.
        alpha, beta, triplet_weight, smoothing, margin, triplet_epochs: Of :class:`edgevis.losses.ReIDLoss`; the last
            is the number of first epochs in which only triplets count.
        circle_weight, circle_margin, circle_gamma: Of the same; 0 leaves the circle loss out.
        held_out: The share of the training identities that only validates.
        pad: Pixels by which an image is padded before it is cropped at random to its size again.
        erase: How likely a random rectangle is erased.
    """

    HAS_LOGITS: ClassVar[frozenset[str]] = frozenset({"reid"})

    loss: str = "reid"
    identities: int = 16
    images: int = 4
    alpha: float = 1.0
    beta: float = 1.0
    triplet_weight: float = 6.375
    smoothing: float = 0.1
    margin: float = 0.3
    triplet_epochs: int = 10
    circle_weight: float = 0.0
    circle_margin: float = 0.25
    circle_gamma: float = 128.0
    held_out: float = 0.15
    pad: int = 10
    erase: float = 0.5

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": known_losses("reid"),
        "identities": whole(2, MOST),
        "images": whole(1, MOST),
        "alpha": number(0, LARGEST),
        "beta": number(0, LARGEST),
        "triplet_weight": number(0, LARGEST),
        "smoothing": number(0, 1, below=True),
        "margin": number(0, LARGEST),
        "triplet_epochs": whole(0, MOST),
        "circle_weight": number(0, LARGEST),
        "circle_margin": number(0, 1),
        "circle_gamma": number(0, LARGEST, above=True),
        "held_out": number(0, 1, below=True),
        "pad": whole(0, 1024),
        "erase": number(0, 1),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReIDFineTuningRecipe(ReIDRecipe):
    """Person Re-ID that goes on from trained weights."""

    BEGINS_TRAINED: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotSegmentationRecipe(Recipe):
    """Few-shot segmentation.

    Attributes:
        loss: ``cross-entropy``, to which ``dice_weight`` adds. One's own takes logits (B, 2, H, W) and the
            query images' masks (B, H, W).
        batch: Pairs of a support and a query image.
        fold: 0 to 3: which quarter of the classes is kept for the test; None draws a fifth of them from the seed.
        where: ``column=value``: the rows of a sample of COCO's ``index.csv`` that may train, such as
            ``commercial_ok=1``; empty for all.
        photometric: Strength of the change of light and colour, 0..1.
        flip: Whether pairs are mirrored half the time.
        dice_weight: Of :func:`edgevis.losses.dice_loss` beside the papers' cross-entropy.
        first_pass_weight: Of the same losses of the first pass of a network that has two; others have no use for it.
        class_power: A class of n images is drawn with a probability in proportion to n to this power: the papers' 0
            draws all classes alike.
        learn_ignored: Whether pixels to be ignored, and those of classes that are set aside in ``classes.json``, count
            as background in the loss, as in the papers; otherwise they do not count.
        test_episodes: Of the evaluation.
        test_shots: Of the evaluation.
    """

    loss: str = "cross-entropy"
    batch: int = 20
    fold: int | None = None
    where: str = ""
    photometric: float = 0.0
    flip: bool = False
    dice_weight: float = 0.0
    first_pass_weight: float = 0.4
    class_power: float = 0.0
    learn_ignored: bool = True
    test_episodes: int = 1000
    test_shots: tuple[int, ...] = (1, 5)

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": known_losses("cross-entropy"),
        "batch": whole(1, MOST),
        "fold": or_null(whole(0, 3)),
        "where": TEXT,
        "photometric": number(0, 1),
        "dice_weight": number(0, LARGEST),
        "first_pass_weight": number(0, LARGEST),
        "class_power": number(0, 1),
        "test_episodes": whole(1, MOST),
        "test_shots": several(whole(1, MOST), more=", none twice", holds=_different),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentationRecipe(Recipe):
    """Segmentation, from boxes or from masks.

    Attributes:
        loss: ``supervised`` is the loss of ``supervision``. One's own takes logits (B, 1, H, W), and masks (B, 1, H, W)
            float32 or, where boxes supervise, boxes (N, 6) int64: image, class, x1, y1, x2, y2, inclusive.
        supervision: ``boxes`` is the box-tightness loss, ``mil`` its multiple-instance baseline, ``masks`` full
            supervision.
        batch: Images.
        angles: Degrees of the lines, ``smooth_max`` and ``alpha`` their maximum, ``pairwise_weight`` of the smoothness;
            see :class:`edgevis.losses.BoxTightnessLoss`.
        flip: Whether images are mirrored half the time, in both directions.
        held_out: The share of the training images that only validates.
    """

    loss: str = "supervised"
    supervision: Literal["boxes", "mil", "masks"]
    batch: int = 16
    angles: tuple[int, ...] = (-40, -20, 0, 20, 40)
    smooth_max: Literal["softmax", "quasimax", "max"] = "softmax"
    alpha: float = 6.0
    pairwise_weight: float = 10.0
    flip: bool = True
    held_out: float = 0.15

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": known_losses("supervised"),
        "batch": whole(1, MOST),
        "angles": several(whole(-180, 180), more=", none twice", holds=_different),
        "alpha": number(0, LARGEST, above=True),
        "pairwise_weight": number(0, LARGEST),
        "held_out": number(0, 1, below=True),
    }


R = TypeVar("R", bound=Recipe)


def recipe_of(kind: type[R], recipe: Recipe) -> R:
    """The recipe, checked to be of the task's type; InputError if it is another task's."""
    if not isinstance(recipe, kind):
        raise InputError(f"a {type(recipe).__name__} is no recipe for this task; allowed: {kind.__name__}")
    return recipe


def _refuse(kind: type[Recipe], name: str, value: object) -> None:
    refusal = kind.allowed()[name].refusal(name, value)
    if refusal is not None:
        raise InputError(f"recipe: {refusal}")


def _by_type(hint: Any) -> Allowed:
    """The allowed values of a field, derived from its type."""
    if hint is bool:
        return SWITCH
    if get_origin(hint) is Literal:
        return one_of(*get_args(hint))
    raise TypeError(f"a recipe's field of type {hint} must state in ALLOWED what it takes")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
