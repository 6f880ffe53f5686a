"""Group norm for the flattened 4-D tensors of :mod:`edgevis.layers.conv4d`.

Paper: Wu, He, "Group Normalization", ECCV 2018.
Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevis.ops.group_norm import group_norm


class GridGroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` with the channels on the third axis: (B, a, C, b) -> the same shape."""

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(input, self.weight, self.bias, self.num_groups, self.eps, channel_axis=2)
