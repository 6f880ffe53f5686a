"""The recipe of adapted prototypes: few-shot classification whose prototypes look at each other first (FEAT)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgevis.models.allowed import Allowed, number, one_of, whole
from edgevis.models.recipe import LARGEST, MOST, EpisodeRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationRecipe(EpisodeRecipe):
    """Few-shot classification by adapted prototypes.

    An episode has ``way`` to ``most_way`` classes, as far as there are so many: a set function that met five labels
    alone is used with two hundred. Where the encoder is frozen, it runs once on each image, or on each of ``views``.

    Attributes:
        most_way: The largest number of classes of an episode.
        logits: ``euclidean`` is minus the squared distance of a query to an adapted prototype, ``cosine`` their
            cosine, by which a predictor scores, times the query's length.
        episode_temperature: T, by which the logits of queries are divided.
        balance: The weight of the regulariser, a cross-entropy of all images of an episode against centres of their
            classes, which are adapted to each other within their class.
        balance_temperature: T2, of the regulariser.
        attention_rate: The attention's learning rate, in multiples of the encoder's.
        views: Random views of each training image, once through a frozen encoder each; 0 takes what a predictor sees.
    """

    distill_embedding: float = 0.0
    most_way: int = 20
    logits: Literal["euclidean", "cosine"] = "cosine"
    episode_temperature: float = 64.0
    balance: float = 0.1
    balance_temperature: float = 64.0
    attention_rate: float = 10.0
    views: int = 0

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": one_of("adapted"),
        "most_way": whole(2, MOST),
        "episode_temperature": number(0, LARGEST, above=True),
        "balance": number(0, LARGEST),
        "balance_temperature": number(0, LARGEST, above=True),
        "attention_rate": number(0, LARGEST, above=True),
        "views": whole(0, 1024),
        "episodes_per_step": one_of(1),
        "distill_embedding": number(0, 0),
        "distill_logits": number(0, 0),
        "mixed": one_of(False),
    }

    def rate_factor(self, name: str) -> float:
        return self.attention_rate if "slf_attn." in name else 1.0
