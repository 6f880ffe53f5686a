"""CSPDarknet and the blocks that it and YOLOX's neck and head are made of.

Papers: Ge, Liu, Wang, Li, Sun, "YOLOX: Exceeding YOLO Series in 2021", 2021; Wang et al., "CSPNet: A New Backbone that
can Enhance Learning Capability of CNN", CVPR Workshops 2020; He et al., "Spatial Pyramid Pooling in Deep Convolutional
Networks for Visual Recognition", ECCV 2014.
Provenance: our own code; parameters bear the names of YOLOX (Megvii-BaseDetection/YOLOX, Apache-2.0), so the state
dicts published there load strictly.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

# Smaller than PyTorch's defaults in momentum and larger in eps, as YOLOX trains.
_BN_EPS = 1e-3
_BN_MOMENTUM = 0.03
# Output channels of the stem and of stages 2 to 5 at a width of 1, and the blocks of the stages at a depth of 1.
_CHANNELS = (64, 128, 256, 512, 1024)
_BLOCKS = (3, 9, 9, 3)

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"silu": nn.SiLU, "hardswish": nn.Hardswish, "relu": nn.ReLU}
"""What may follow the batch norms. SiLU's exponential is half of the time of YOLOX-nano on a CPU; Hardswish is
piecewise quadratic and close to it."""


class ConvBNAct(nn.Module):
    """A convolution without bias that keeps the size at stride 1, batch norm, activation. YOLOX's ``BaseConv``.

    The activation is SiLU; :func:`set_activation` replaces it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=_BN_EPS, momentum=_BN_MOMENTUM)
        self.act: nn.Module = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(self.bn(self.conv(x)))
        return result


class DepthwiseConvBNAct(nn.Module):
    """A depthwise and a pointwise :class:`ConvBNAct`. YOLOX's ``DWConv``."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1) -> None:
        super().__init__()
        self.dconv = ConvBNAct(inputs, inputs, kernel, stride=stride, groups=inputs)
        self.pconv = ConvBNAct(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.pconv(self.dconv(x))
        return result


class CSPBottleneck(nn.Module):
    """A pointwise and a depthwise separable 3x3 convolution. (N, channels, h, w) keeps its shape."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = ConvBNAct(channels, channels)
        self.conv2 = DepthwiseConvBNAct(channels, channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv2(self.conv1(x))
        return x + result if self.shortcut else result


class CSPLayer(nn.Module):
    """Bottlenecks on half of the channels, joined with the other half. (N, inputs, h, w) -> (N, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, *, blocks: int = 1, shortcut: bool = False) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = ConvBNAct(inputs, half)
        self.conv2 = ConvBNAct(inputs, half)
        self.conv3 = ConvBNAct(outputs, outputs)
        self.m = nn.Sequential(*(CSPBottleneck(half, shortcut=shortcut) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv3(torch.cat([self.m(self.conv1(x)), self.conv2(x)], dim=1))
        return result


class SpatialPyramidPooling(nn.Module):
    """Maxima over 5x5, 9x9 and 13x13 windows beside the map itself. (N, channels, h, w) keeps its shape.

    A maximum over 9x9 is one over 5x5 of one over 5x5, so three small poolings compute the three large ones exactly.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvBNAct(channels, half)
        self.conv2 = ConvBNAct(4 * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.conv1(x)]
        for _ in range(3):
            maps.append(functional.max_pool2d(maps[-1], 5, stride=1, padding=2))
        result: Tensor = self.conv2(torch.cat(maps, dim=1))
        return result


class Focus(nn.Module):
    """Four pixels to one of four times the channels, then a 3x3 convolution. (N, 3, 2 h, 2 w) -> (N, channels, h, w).

    The four are (even, even), (odd, even), (even, odd), (odd, odd) rows and columns. In evaluation mode both steps are
    one 6x6 convolution with stride 2 and the same weights in other places: no strided slices in the exported graph.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvBNAct(12, channels, 3)

    def forward(self, image: Tensor) -> Tensor:
        if not self.training:
            x = functional.conv2d(image, self._strided_weight(), stride=2, padding=2)
            result: Tensor = self.conv.act(self.conv.bn(x))
            return result
        slices = [image[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        sliced: Tensor = self.conv(torch.cat(slices, dim=1))
        return sliced

    def _strided_weight(self) -> Tensor:
        """The 3x3 weights (channels, 12, 3, 3) as (channels, 3, 6, 6)."""
        weight = self.conv.conv.weight
        # Axes: output, column parity, row parity, colour, y, x.
        parted = weight.reshape(weight.shape[0], 2, 2, 3, 3, 3)
        return parted.permute(0, 3, 4, 2, 5, 1).reshape(weight.shape[0], 3, 6, 6)


class CSPDarknet(nn.Module):
    """YOLOX's backbone with depthwise convolutions.

    Input: image (N, 3, H, W) float32, sides multiples of 32. Output: maps at 1/8, 1/16 and 1/32, of ``channels``.

    Args:
        depth: Factor on the number of blocks.
        width: Factor on the number of channels.

    Attributes:
        channels: Of the three maps.
    """

    def __init__(self, *, depth: float, width: float) -> None:
        super().__init__()
        sizes = [int(width * channels) for channels in _CHANNELS]
        blocks = [max(round(depth * count), 1) for count in _BLOCKS]
        self.channels = tuple(sizes[2:])
        self.stem = Focus(sizes[0])
        stages = [
            [DepthwiseConvBNAct(inputs, outputs, stride=2), CSPLayer(outputs, outputs, blocks=count, shortcut=True)]
            for (inputs, outputs), count in zip(pairwise(sizes), blocks, strict=True)
        ]
        last = sizes[-1]
        stages[-1][1:] = [SpatialPyramidPooling(last), CSPLayer(last, last, blocks=blocks[-1])]
        self.dark2, self.dark3, self.dark4, self.dark5 = (nn.Sequential(*stage) for stage in stages)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        third = self.dark3(self.dark2(self.stem(image)))
        fourth = self.dark4(third)
        return third, fourth, self.dark5(fourth)


def set_activation(module: nn.Module, name: str) -> None:
    """Have every :class:`ConvBNAct` of a module use one of :data:`ACTIVATIONS`."""
    for part in module.modules():
        if isinstance(part, ConvBNAct):
            part.act = ACTIVATIONS[name]()
