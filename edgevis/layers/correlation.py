"""Cosine similarity of every place of the query image with every place of the support image.

Paper: Min, Kang, Cho, "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021, section 4.1 and equation 1.
Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.errors import InputError

EPSILON = 1e-5
"""Added to the length of a feature vector, not to its square: a vector of zeros stays one."""


def unit_channels(features: Tensor, *, dim: int = 1) -> Tensor:
    """Divide each feature vector by its length: ``x / (sqrt(sum x^2) + 1e-5)``.

    Args:
        features: Floating point, of any shape.
        dim: The axis of the channels: 1 in (B, C, h, w), 2 in (N, L, C, places).

    Returns:
        Of the same shape.
    """
    length: Tensor = torch.linalg.vector_norm(features, dim=dim, keepdim=True)
    return features / (length + EPSILON)


def pair_correlation(query: Tensor, support: Tensor) -> Tensor:
    """Correlation of every query image with every support image, layer by layer, clamped at 0 from below.

    Shapes are not checked: this is traced for export, with both batch sizes open.

    Args:
        query: (N, L, C, Q): L layers of N images, unit channels, Q places in row order.
        support: (K, L, C, S), the same for K shots.

    Returns:
        (N * K, L, Q, S); row ``n * K + k`` is query n with shot k.
    """
    products = query.transpose(-1, -2).unsqueeze(1) @ support.unsqueeze(0)  # (N, K, L, Q, S)
    return torch.relu(products.flatten(0, 1))


def row_correlation(query: Tensor, support: Tensor) -> Tensor:
    """Correlation of each query image with the support image of the same row: (B, L, C, Q), (B, L, C, S) ->
    (B, L, Q, S).
    """
    return torch.relu(query.transpose(-1, -2) @ support)


def correlation_pyramid(
    query_features: Sequence[Tensor], support_features: Sequence[Tensor], depths: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The correlation tensors of three levels, from the feature maps of two images.

    Args:
        query_features: Maps (B, C, ha, wa) float, shallow to deep; within a level all of one size.
        support_features: As many maps (B, C, hb, wb), already masked; row i belongs to the query's row i.
        depths: How many of the maps belong to stages 2, 3 and 4 of the backbone: (n2, n3, n4).

    Returns:
        (l4, l3, l2), each (B, L, ha, wa, hb, wb) in [0, 1] with L the level's depth, in the order of the maps.

    Raises:
        InputError: The lists are not of sum(depths) maps, or the maps do not fit together.
    """
    if len(depths) != 3 or min(depths) < 1:
        raise InputError(f"depths are {tuple(depths)}; allowed: three of 1 or more, (n2, n3, n4)")
    if not len(query_features) == len(support_features) == sum(depths):
        raise InputError(
            f"{len(query_features)} query maps and {len(support_features)} support maps; "
            f"allowed: {sum(depths)} of each, the sum of depths {tuple(depths)}"
        )
    levels: list[Tensor] = []
    start = 0
    for depth in depths:
        levels.append(_level(query_features[start : start + depth], support_features[start : start + depth]))
        start += depth
    l2, l3, l4 = levels
    return l4, l3, l2


def _level(query_maps: Sequence[Tensor], support_maps: Sequence[Tensor]) -> Tensor:
    """(B, L, ha, wa, hb, wb) of one level's pairs of maps."""
    for maps in zip(query_maps, support_maps, strict=True):
        _check_pair(*maps, like=(query_maps[0], support_maps[0]))
    correlations = [
        torch.relu(unit_channels(query).flatten(2).transpose(1, 2) @ unit_channels(support).flatten(2))
        for query, support in zip(query_maps, support_maps, strict=True)
    ]
    batch, grids = query_maps[0].shape[0], (*query_maps[0].shape[2:], *support_maps[0].shape[2:])
    return torch.stack(correlations, dim=1).reshape(batch, len(correlations), *grids)


def _check_pair(query: Tensor, support: Tensor, *, like: tuple[Tensor, Tensor]) -> None:
    if query.dim() != 4 or support.dim() != 4 or query.shape[:2] != support.shape[:2]:
        raise InputError(
            f"query map {tuple(query.shape)}, support map {tuple(support.shape)}; "
            "allowed: (B, C, h, w) with the same B and C"
        )
    for what, actual, expected in (("query", query, like[0]), ("support", support, like[1])):
        if actual.shape[0] != expected.shape[0] or actual.shape[2:] != expected.shape[2:]:
            raise InputError(
                f"{what} maps of one level are {tuple(expected.shape)} and {tuple(actual.shape)}; "
                "allowed: one batch and one size for all"
            )
