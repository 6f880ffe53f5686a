"""Channel attention: each channel of a map receives the channels that look unlike it.

Papers: Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019 (the module); Chen et al., "ABD-Net:
Attentive but Diverse Person Re-Identification", ICCV 2019. Our own code, with the parameter name of ABD-Net.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """(N, C, h, w) float32 -> (N, C, h, w): ``gamma * attended + x``, where gamma starts at 0.

    With x_i the map of channel i as a vector, it receives the sum over channels j of softmax_j(-x_i . x_j) x_j,
    unscaled. There are no weights but gamma.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        channels = x.flatten(2)
        # The papers write softmax(max_j e - e), which is softmax(-e): a constant per row changes nothing.
        affinity = torch.softmax(-(channels @ channels.transpose(1, 2)), dim=-1)  # (N, channels i, channels j)
        result: Tensor = self.gamma * (affinity @ channels).view_as(x) + x
        return result
