"""The recipe of a projection: few-shot classification by a linear map of what a frozen encoder sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgevis.models.allowed import Allowed, number, one_of, whole
from edgevis.models.recipe import EpisodeRecipe

_LARGEST = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionRecipe(EpisodeRecipe):
    """Few-shot classification by a linear projection of a frozen encoder's pooled vectors.

    A step has ``way`` classes with ``shot + query`` images each. Sets of images whose classes are named ``SET/CLASS``
    take part with as many classes as they have a share of, and a class is only told apart from those of its own set.

    Attributes:
        dimension: Outputs of the projection.
        views: Random views of each training image, once through the encoder each; 0 takes what a predictor sees.
        whiten: Whether the projection begins as the whitening of the data; otherwise as the weights have it.
        shrink: Of that whitening: what is added to the covariance within classes, times its mean variance.
        dropout: Of the pooled vectors, 0..1.
        share: Of the learned projection in what is kept; the rest is the one that training began with.
    """

    distill_embedding: float = 0.0
    dimension: int = 512
    views: int = 0
    whiten: bool = False
    shrink: float = 1.0
    dropout: float = 0.0
    share: float = 0.5

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": one_of("projection"),
        "dimension": whole(1, 2048),
        "views": whole(0, 1024),
        "shrink": number(0, _LARGEST, above=True),
        "dropout": number(0, 1, below=True),
        "share": number(0, 1, above=True),
        "distill_embedding": number(0, 0),
        "distill_logits": number(0, 0),
        "mixed": one_of(False),
    }
