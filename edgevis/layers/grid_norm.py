"""Group norm and ReLU for the flattened 4-D tensors of :mod:`edgevis.layers.conv4d`.

Paper: Wu, He, "Group Normalization", ECCV 2018.
Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GridGroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` with the channels on the third axis: (B, outer, C, inner) -> the same shape.

    Sums are taken axis by axis. PyTorch 2.13's kernel for tensors with the channels innermost, which the convolutions
    give, loses half of the digits at this size (0.004 off at unit variance); so does, exported, its
    InstanceNormalization, which ONNX Runtime 1.31 and OpenVINO 2026.4 add up in one go.
    """

    def forward(self, input: Tensor) -> Tensor:
        channels, inner = input.shape[2], input.shape[3]
        centred = input - self._per_channel(self._group_means(input.mean(3)))
        # A length and its square, not a mean of squares: OpenVINO would put that back into its one kernel.
        length = torch.linalg.vector_norm(centred, dim=3)
        variance = self._group_means(length * length) / inner
        scale = self._per_channel(torch.rsqrt(variance + self.eps)) * self.weight.reshape(1, 1, channels, 1)
        return torch.addcmul(self.bias.reshape(1, 1, channels, 1), centred, scale)

    def _group_means(self, rows: Tensor) -> Tensor:
        """(B, outer, C) -> (B, groups, 1)."""
        channels = rows.shape[2]
        return rows.mean(1).reshape(-1, self.num_groups, channels // self.num_groups).mean(2, keepdim=True)

    def _per_channel(self, groups: Tensor) -> Tensor:
        """(B, groups, 1) -> (B, 1, C, 1)."""
        each = self.num_channels // self.num_groups
        return groups.expand(-1, -1, each).reshape(-1, 1, self.num_channels, 1)
