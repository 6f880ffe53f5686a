"""Position attention: each place of a map receives what looks like it anywhere on the map.

Papers: Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019 (the module); Chen et al., "ABD-Net:
Attentive but Diverse Person Re-Identification", ICCV 2019 (``abd``); Zhang et al., "FPB: Feature Pyramid Branch for
Person Re-Identification", 2021 (``fpb``); Lin et al., "Efficient Person Re-Identification with Multi-Scale Feature
Fusion", section III.C (``paper``). Our own code.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from runtime.errors import ModelError

Variant = Literal["paper", "abd", "fpb"]

_FPB_DROPOUT = 0.2


class PositionAttention(nn.Module):
    """(N, C, h, w) float32 -> (N, C, h, w): ``gamma * attended + x``, where gamma starts at 0.

    With query, key and value maps q, k, v, place i receives the sum over places j of softmax_j(q_i . k_j) v_j,
    unscaled.

    Args:
        channels: C; 8 or more for ``abd`` and ``fpb``.
        variant: ``paper``: q, k and v are C-channel 1x1 convolutions with batch norm and ReLU, as EPRI-Net's text
            says; ``abd``: plain 1x1 convolutions with bias, q and k of C/8 channels, with the parameter names of
            ABD-Net; ``fpb``: as ``abd``, with batch norm on ``gamma * attended`` and, in training, dropout on the
            attention's weights and after the batch norm.
    """

    def __init__(self, channels: int, variant: Variant = "paper") -> None:
        super().__init__()
        if variant not in get_args(Variant):
            raise ModelError(f"position attention variant {variant!r}; allowed: {', '.join(get_args(Variant))}")
        if channels < (1 if variant == "paper" else 8):
            raise ModelError(f"position attention of {channels} channels; allowed: 8 or more, 1 or more for 'paper'")
        self.variant = variant
        if variant == "paper":
            self.query, self.key, self.value = (
                nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
                for _ in range(3)
            )
        else:
            self.query_conv = nn.Conv2d(channels, channels // 8, 1)
            self.key_conv = nn.Conv2d(channels, channels // 8, 1)
            self.value_conv = nn.Conv2d(channels, channels, 1)
        if variant == "fpb":
            self.bn = nn.BatchNorm2d(channels)
            self.dropout = nn.Dropout(_FPB_DROPOUT)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == "paper":
            query, key, value = self.query(x), self.key(x), self.value(x)
        else:
            query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        affinity = torch.softmax(query.flatten(2).transpose(1, 2) @ key.flatten(2), dim=-1)  # (N, places i, places j)
        if self.variant == "fpb":
            affinity = self.dropout(affinity)
        attended = self.gamma * (value.flatten(2) @ affinity.transpose(1, 2)).view_as(x)
        if self.variant == "fpb":
            attended = self.dropout(self.bn(attended))
        result: Tensor = attended + x
        return result
