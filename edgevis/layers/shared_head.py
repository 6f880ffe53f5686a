"""The heads of EfficientDet: one network for the maps of all levels, with batch norms of its own for each level.

Paper: Tan, Pang, Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020, section 4.
Provenance: our own code; parameters bear the names of ``effdet`` (rwightman/efficientdet-pytorch, Apache-2.0).
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.layers.bifpn import BN_EPS, BN_MOMENTUM, LEVELS, SeparableConv


class SharedHead(nn.Module):
    """Separable convolutions, each followed by batch norm and SiLU, then one that predicts.

    Input: a map for each level, (N, channels, h, w). Output: a map for each, (N, outputs, h, w).

    Args:
        channels: Of the maps.
        outputs: Of the prediction.
        repeats: Convolutions before the one that predicts.
        redundant_bias: Whether these have a bias although a batch norm follows.
        bias: The prediction's bias at the start of a training.
    """

    def __init__(
        self, channels: int, outputs: int, *, repeats: int = 3, redundant_bias: bool = False, bias: float = 0.0
    ) -> None:
        super().__init__()
        self.conv_rep = nn.ModuleList(SeparableConv(channels, channels, bias=redundant_bias) for _ in range(repeats))
        self.bn_rep = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)))
                for _ in LEVELS
            )
            for _ in range(repeats)
        )
        self.predict = SeparableConv(channels, outputs, bias=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.predict.get_parameter("conv_pw.bias"), bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        results = []
        for level, x in enumerate(maps):
            for repeat, conv in enumerate(self.conv_rep):
                norm = self.get_submodule(f"bn_rep.{repeat}.{level}.bn")
                x = functional.silu(_normalised(cast(SeparableConv, conv), cast(nn.BatchNorm2d, norm), x))
            results.append(self.predict(x))
        return results


def _normalised(conv: SeparableConv, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """The batch norm of the convolution's result.

    In evaluation mode the norm is folded into a copy of the pointwise weights here: the exporter cannot do it, because
    all levels share the convolution, and a batch norm that is left over costs time and keeps a layer from int8.
    """
    if norm.training:
        result: Tensor = norm(conv(x))
        return result
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    shift = -mean if conv.conv_pw.bias is None else conv.conv_pw.bias - mean
    weight = conv.conv_pw.weight * scale[:, None, None, None]
    return functional.conv2d(conv.conv_dw(x), weight, shift * scale + norm.bias)
