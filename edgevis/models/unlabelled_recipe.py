"""Training recipes that need no labels: a student learns a teacher's outputs on views of persons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgevis.models.allowed import Allowed, number, one_of, whole
from edgevis.models.recipe import LARGEST, MOST, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockwiseDistillationRecipe(Recipe):
    """Distillation without labels: each block of a network learns alone, then all of them together.

    Attributes:
        loss: ``unexplained`` is the share of the teacher's maps and embeddings that is left unexplained.
        batch: Views of persons.
        blockwise: The share of the epochs in which each block is given the teacher's input of that block.
    """

    loss: str = "unexplained"
    batch: int = 64
    blockwise: float = 0.25

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": one_of("unexplained"),
        "batch": whole(2, MOST),
        "blockwise": number(0, 1),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityDistillationRecipe(Recipe):
    """Distillation without labels: the similarities of a teacher's embeddings, of any width, on views of persons.

    Attributes:
        loss: ``similarity`` is :class:`edgevis.losses.SimilarityDistillationLoss`.
        batch: Views of persons, two of each.
        views: How many different views there are: the teacher sees each once, and its embedding is kept. 0 draws new
            ones in each step.
        fitted_views: On so many the embedding's layer is fitted to the teacher's before the first step; 0 keeps it.
        own_share: Of the fit's target, the share of what the student's similarities were.
        harder: Whether the student sees each view moved, in other light, with fewer pixels or partly hidden.
        pairs_weight, direction_weight, anchor_weight: Of the loss's terms.
    """

    loss: str = "similarity"
    batch: int = 64
    views: int = 0
    fitted_views: int = 0
    own_share: float = 0.0
    harder: bool = False
    pairs_weight: float = 1.0
    direction_weight: float = 1.0
    anchor_weight: float = 0.0

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": one_of("similarity"),
        "batch": whole(4, MOST),
        "views": whole(0, MOST),
        "fitted_views": whole(0, MOST),
        "own_share": number(0, 1),
        **dict.fromkeys(("pairs_weight", "direction_weight", "anchor_weight"), number(0, LARGEST)),
    }
