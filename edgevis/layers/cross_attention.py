"""Channel-wise cross-attention between two flows of features.

Paper: Tang, Xia, Chen, Du, Wang, "Task-Specific Few-Shot Image Classification by Balancing Sample-Level and Class-Level
Generalization", section 3.1, equations 1 to 3. Our own code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevis.ops import cross_attention
from runtime.errors import ModelError


class CrossAttention(nn.Module):
    """Source and target (N, C, h, w) -> (N, C, h, w): the *source* flow times the gate of the *target* flow.

    The gate is one number from 0 to 1 for each image and channel: the target's channel means through two linear maps
    without bias, C -> C/reduction -> C, with a leaky ReLU between and a sigmoid after them. That the gate multiplies
    the source is the paper's text ("multiplied channel-wisely with F_s"); its printed equation 3 multiplies the target,
    which would be plain squeeze-and-excitation and leave the source unused.

    Args:
        channels: C, a multiple of ``reduction``.
        reduction: The paper's is 16.
        negative_slope: Of the leaky ReLU; the paper states none, 0.01 is PyTorch's.
    """

    def __init__(self, channels: int, *, reduction: int = 16, negative_slope: float = 0.01) -> None:
        super().__init__()
        if reduction < 1 or channels < reduction or channels % reduction:
            raise ModelError(
                f"cross-attention of {channels} channels reduced by {reduction}; allowed: a multiple of the reduction"
            )
        self.reduce = nn.Linear(channels, channels // reduction, bias=False)
        self.expand = nn.Linear(channels // reduction, channels, bias=False)
        self.negative_slope = negative_slope

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        reduce, expand = self.reduce.weight, self.expand.weight
        if not source.dtype == target.dtype == reduce.dtype and torch.is_autocast_enabled(source.device.type):
            # Mixed precision: weights are cast, as for a linear layer.
            target, reduce, expand = (tensor.to(source.dtype) for tensor in (target, reduce, expand))
        return cross_attention(source, target, reduce, expand, self.negative_slope)
