"""Group norm for tensors with many places per group; see :mod:`edgevis.ops.group_norm` for why it is not PyTorch's.

Paper: Wu, He, "Group Normalization", ECCV 2018.
Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevis.ops.group_norm import group_norm


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` with its parameters and results, exported as the operator of edgevis: (N, C, a, b) -> same."""

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(input, self.weight, self.bias, self.num_groups, self.eps)
