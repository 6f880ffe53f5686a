"""ResNet-12: the small residual network of few-shot classification.

Papers: Lee, Maji, Ravichandran, Soatto, "Meta-Learning with Differentiable Convex Optimization", CVPR 2019 (the four
blocks); Chen, Liu, Xu, Darrell, Wang, "Meta-Baseline", ICCV 2021 (this form, without DropBlock). Our own code;
parameters bear the names of Meta-Baseline's ``resnet12`` (yinboc/few-shot-meta-baseline, MIT), so the encoder's state
dicts published there load strictly.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (64, 128, 256, 512)

_NEGATIVE_SLOPE = 0.1


class ResNet12Block(nn.Module):
    """Three 3x3 convolutions and a projected shortcut, then half the size: (N, C, h, w) -> (N, outputs, h//2, w//2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv3 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.bn1(self.conv1(x)), _NEGATIVE_SLOPE)
        out = F.leaky_relu(self.bn2(self.conv2(out)), _NEGATIVE_SLOPE)
        out = self.bn3(self.conv3(out)) + self.downsample(x)
        return F.max_pool2d(F.leaky_relu(out, _NEGATIVE_SLOPE), 2)


class ResNet12(nn.Module):
    """Image (N, 3, h, w) float32 -> (N, channels[3]): the mean of the last map. Sides must be 16 or more.

    An image of 84 x 84 becomes maps of 42, 21, 10 and 5 a side.

    Args:
        channels: Outputs of the four blocks; the wide form in use elsewhere is (64, 160, 320, 640).
    """

    def __init__(self, *, channels: tuple[int, int, int, int] = CHANNELS) -> None:
        super().__init__()
        self.layer1 = ResNet12Block(3, channels[0])
        self.layer2 = ResNet12Block(channels[0], channels[1])
        self.layer3 = ResNet12Block(channels[1], channels[2])
        self.layer4 = ResNet12Block(channels[2], channels[3])

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(image))))
        return x.mean((2, 3))
