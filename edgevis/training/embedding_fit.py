"""Fits the layer of an encoder's embedding to a teacher's embeddings by ridge regression: no steps, no learning rate.

All that comes before the layer stays as it is, and with it what it knows of other pictures. Of a network that was
trained to tell identities apart, the pooled map says more of a person's likeness to others than the layer behind it
lets through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import ModelError

_SHRINK = 0.02
_SEED = 0
_LAYERS = ([nn.Linear], [nn.Linear, nn.BatchNorm1d, nn.ReLU], [nn.Linear, nn.BatchNorm1d, nn.PReLU])


def ridge(features: Tensor, targets: Tensor, *, shrink: float = _SHRINK) -> Tensor:
    """The linear map (C, D) from features (N, C) to targets (N, D) with the least squared error.

    Args:
        features, targets: Floating point.
        shrink: The penalty on the map's squares, times the mean of the features' squares.
    """
    x, y = features.double(), targets.double()
    moments = x.T @ x / len(x)
    penalty = shrink * moments.diagonal().mean() * torch.eye(len(moments), dtype=x.dtype, device=x.device)
    solution: Tensor = torch.linalg.solve(moments + penalty, x.T @ y / len(x))
    return solution.to(features.dtype)


@torch.no_grad()
def fit_embedding(layer: nn.Linear | nn.Sequential, features: Tensor, targets: Tensor) -> None:
    """Change a layer so that the cosines of its outputs are those of the targets, predicted from its inputs.

    A ReLU lets no output be negative. So half of the outputs are the prediction, less its mean and rotated, the other
    half are the same with the sign changed: two rows are alike as far as they agree on the signs.

    Args:
        layer: ``nn.Linear``, alone or before ``nn.BatchNorm1d`` and ``nn.ReLU`` or ``nn.PReLU``; the lengths of its
            outputs stay about as they are.
        features: (N, C) floating point, the layer's inputs.
        targets: (N, D) floating point.

    Raises:
        ModelError: The layer is made of other modules.
    """
    parts: tuple[Any, ...] = (layer,) if isinstance(layer, nn.Linear) else tuple(layer)
    if [type(part) for part in parts] not in _LAYERS:
        raise ModelError(
            "the layer of the embedding is not made of Linear, alone or with BatchNorm1d and ReLU or PReLU"
        )
    linear, last = parts[0], parts[-1]
    signed, length = not isinstance(last, nn.ReLU), layer(features).norm(dim=1).mean()
    mean, wanted = features.mean(0), targets.mean(0)
    matrix = ridge(features - mean, targets - wanted)
    offset = (wanted if signed else torch.zeros_like(wanted)) - mean @ matrix
    # In the prediction's own coordinates, the widest first.
    width = linear.out_features if signed else linear.out_features // 2
    axes = torch.linalg.svd(features @ matrix + offset, full_matrices=False)[2].T[:, :width]
    if not signed:
        random = torch.randn(width, axes.shape[1], generator=torch.Generator().manual_seed(_SEED)).to(axes)
        axes = axes @ torch.linalg.qr(random)[0].T
        axes = torch.cat([axes, -axes], dim=1)
    axes = torch.cat([axes, axes.new_zeros(len(axes), linear.out_features - axes.shape[1])], dim=1)
    linear.weight.copy_((matrix @ axes).T)
    linear.bias.copy_(offset @ axes)
    if len(parts) > 1:
        norm = parts[1]
        norm.weight.fill_(1)
        norm.bias.zero_()
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
    if isinstance(last, nn.PReLU):
        last.weight.fill_(1)
    scale = length / layer(features).norm(dim=1).mean()
    linear.weight.mul_(scale)
    linear.bias.mul_(scale)
