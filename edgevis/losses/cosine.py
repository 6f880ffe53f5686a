"""Classification by prototypes: the mean embedding of each class's few examples, and how near a query is to it.

Papers: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017; Chen, Liu, Xu, Darrell,
Wang, "Meta-Baseline", ICCV 2021 (cosine with a learnable scale). Our own code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edgevis.losses._checks import check_values
from runtime.errors import InputError


def prototypes(support: Tensor) -> Tensor:
    """The mean of each class's embeddings, not normalised before or after.

    Args:
        support: (..., way, shot, d) floating point.

    Returns:
        (..., way, d).

    Raises:
        InputError: Another shape, an empty support set, NaN.
    """
    if support.dim() < 3 or 0 in support.shape:
        raise InputError(f"support has shape {tuple(support.shape)}; allowed: (..., way, shot, d), none of them 0")
    check_values("support", support)
    return support.mean(-2)


def cosine_logits(
    queries: Tensor, centres: Tensor, scale: float | Tensor = 10.0, *, normalise_queries: bool = True
) -> Tensor:
    """``scale`` times the cosine of each query with each class's prototype.

    Args:
        queries: (..., Q, d) floating point.
        centres: (..., way, d), such as :func:`prototypes` makes.
        scale: The inverse of the softmax's temperature; 10 is where Meta-Baseline starts to learn it.
        normalise_queries: False keeps each query's length as a factor, as FEAT does.

    Returns:
        (..., Q, way).

    Raises:
        InputError: Shapes do not fit together, NaN.
    """
    _check(queries, centres)
    if normalise_queries:
        queries = F.normalize(queries, dim=-1)
    return queries @ F.normalize(centres, dim=-1).transpose(-1, -2) * scale


def squared_distance_logits(queries: Tensor, centres: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Minus ``scale`` times the squared Euclidean distance of each query to each class's prototype.

    Args:
        queries: (..., Q, d) floating point.
        centres: (..., way, d), such as :func:`prototypes` makes.
        scale: The inverse of the softmax's temperature.

    Returns:
        (..., Q, way), each 0 or less for a positive scale.

    Raises:
        InputError: Shapes do not fit together, NaN.
    """
    _check(queries, centres)
    return -(queries.unsqueeze(-2) - centres.unsqueeze(-3)).square().sum(-1) * scale


def _check(queries: Tensor, centres: Tensor) -> None:
    if (
        queries.dim() < 2
        or centres.dim() != queries.dim()
        or queries.shape[:-2] != centres.shape[:-2]
        or queries.shape[-1] != centres.shape[-1]
        or 0 in (*queries.shape, *centres.shape)
    ):
        raise InputError(
            f"queries have shape {tuple(queries.shape)} and centres {tuple(centres.shape)}; allowed: (..., Q, d) and "
            "(..., way, d), none of them 0"
        )
    check_values("queries", queries)
    check_values("centres", centres)
