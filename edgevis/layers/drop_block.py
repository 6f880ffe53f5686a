"""DropBlock: regions of a map are dropped in training, not single elements, which their neighbours would replace.

Paper: Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks", NeurIPS 2018; the schedule and
the scaling are those of Lee et al., CVPR 2019, which FEAT took over. Our own code: a block is dropped whole, where the
published one leaves holes whenever the number of seeds shares a factor with the block's area.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import ModelError

MOST = 0.1
"""The share of a map that is dropped when the schedule has ended."""

STEPS = 40_000
"""Training steps over which the share rises from 0."""


class DropBlock(nn.Module):
    """(N, C, h, w) float32 -> the same in evaluation; in training, without some square regions of each channel.

    Args:
        block: Side of the square.

    Attributes:
        step: Training steps so far, which decide the share that is dropped; each pass in training counts one. It is no
            part of the state dict: a training that goes on sets it.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        if block < 1:
            raise ModelError(f"DropBlock of a block of {block}; allowed: 1 or more")
        self.block, self.step = block, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.step += 1
        side = x.shape[-1]
        grid = (x.shape[-2] - self.block + 1, side - self.block + 1)
        if min(grid) < 1:
            raise ModelError(f"DropBlock of {self.block} on a map of {tuple(x.shape[-2:])}; allowed: larger maps")
        seeds = torch.bernoulli(torch.full((*x.shape[:2], *grid), seed_rate(self.step, side, self.block)))
        kept, scale = kept_of(seeds.to(x), self.block)
        return x * kept * scale


def seed_rate(step: int, side: int, block: int) -> float:
    """The probability of a seed in each place where a block may begin, after so many steps.

    Args:
        step: Training steps so far.
        side: Of the map.
        block: Side of the square.
    """
    keep = max(1 - MOST / STEPS * step, 1 - MOST)
    return (1 - keep) / block**2 * side**2 / (side - block + 1) ** 2


def kept_of(seeds: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """What stays, and what it is multiplied by so that the mean stays, too.

    Args:
        seeds: (N, C, h - block + 1, w - block + 1), 1 where a block begins and 0 elsewhere.
        block: Side of the square.

    Returns:
        (N, C, h, w), 0 or 1, and a scalar; 1 where nothing is kept.
    """
    kept = 1 - F.max_pool2d(F.pad(seeds, [block - 1] * 4), block, stride=1)
    return kept, kept.numel() / kept.sum().clamp(min=1)
