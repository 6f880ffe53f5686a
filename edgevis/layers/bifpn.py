"""BiFPN: maps of five scales exchange features downwards and upwards, several times, with learned weights.

Paper: Tan, Pang, Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020, section 3.
Provenance: our own code; parameters bear the names of ``effdet`` (rwightman/efficientdet-pytorch, Apache-2.0), so the
state dicts published there load strictly.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = (3, 4, 5, 6, 7)
"""The map of level L is at 1 / 2^L of the image's sides."""

BN_EPS = 1e-3
BN_MOMENTUM = 0.01

# The nodes of a cell: its level, and the numbers of its inputs. Numbers 0 to 4 are the cell's inputs, levels 3 to 7;
# node i is number 5 + i. The last five nodes are the cell's outputs.
_NODES = (
    (6, (3, 4)),
    (5, (2, 5)),
    (4, (1, 6)),
    (3, (0, 7)),
    (4, (1, 7, 8)),
    (5, (2, 6, 9)),
    (6, (3, 5, 10)),
    (7, (4, 11)),
)
_LEVEL_OF = (*LEVELS, *(level for level, _ in _NODES))
_FUSION_EPS = 1e-4
_BACKBONE_LEVELS = 3


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution and a pointwise one, nothing between. (N, inputs, h, w) -> (N, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv_pw(self.conv_dw(x))
        return result


class SeparableConvBN(SeparableConv):
    """The same with a batch norm after it."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.bn = nn.BatchNorm2d(outputs, eps=BN_EPS, momentum=BN_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn(super().forward(x))
        return result


class WeightedFusion(nn.Module):
    """Fast normalised fusion: the mean of maps, weighted by learned numbers >= 0. Section 3.3.

    Args:
        channels: Channels of the result, and of every input that is not in ``inputs``.
        count: Number of maps.
        inputs: Channels, by the input's number, of those that a 1x1 convolution brings to ``channels``.
        redundant_bias: Whether that convolution has a bias although a batch norm follows.
    """

    def __init__(self, channels: int, *, count: int, inputs: dict[int, int], redundant_bias: bool) -> None:
        super().__init__()
        self.edge_weights = nn.Parameter(torch.ones(count))
        self.resample = nn.ModuleDict(
            {str(number): pointwise_bn(incoming, channels, bias=redundant_bias) for number, incoming in inputs.items()}
        )

    def narrowed(self, number: int, x: Tensor) -> Tensor:
        """The input of that number with the fusion's channels."""
        key = str(number)
        result: Tensor = self.resample[key](x) if key in self.resample else x
        return result

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (N, channels, h, w) of one size to one map."""
        # Of parameters alone: the exporter folds it to constants.
        weights = functional.relu(self.edge_weights)
        weights = weights / (weights.sum() + _FUSION_EPS)
        first, *others = (x * weights[place] for place, x in enumerate(maps))
        return sum(others, first)


class BiFPNNode(nn.Module):
    """Resamples its inputs to one level, fuses them, then SiLU, separable convolution, batch norm."""

    def __init__(self, place: int, channels: int, *, inputs: dict[int, int], tensorflow: bool) -> None:
        super().__init__()
        self.level = _NODES[place][0]
        self.numbers: tuple[int, ...] = _NODES[place][1]
        self.tensorflow = tensorflow
        own = {number: inputs[number] for number in self.numbers if number in inputs}
        self.combine = WeightedFusion(channels, count=len(self.numbers), inputs=own, redundant_bias=tensorflow)
        self.after_combine = nn.Sequential(
            OrderedDict(act=nn.SiLU(), conv=SeparableConvBN(channels, channels, bias=tensorflow))
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """From the cell's maps by number to this node's."""
        resampled = []
        for number in self.numbers:
            x = self.combine.narrowed(number, maps[number])
            if _LEVEL_OF[number] < self.level:
                x = halved(x, tensorflow=self.tensorflow)
            elif _LEVEL_OF[number] > self.level:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            resampled.append(x)
        result: Tensor = self.after_combine(self.combine(resampled))
        return result


class BiFPNCell(nn.Module):
    """One exchange between levels 3 to 7, downwards and upwards."""

    def __init__(self, channels: int, *, inputs: dict[int, int], tensorflow: bool) -> None:
        super().__init__()
        self.fnode = nn.ModuleList(
            BiFPNNode(place, channels, inputs=inputs, tensorflow=tensorflow) for place in range(len(_NODES))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        numbered = list(maps)
        for node in self.fnode:
            numbered.append(node(numbered))
        return numbered[-len(LEVELS) :]


class BiFPN(nn.Module):
    """Levels 6 and 7 from level 5, then several cells.

    Input: three maps, levels 3 to 5, each side of which is a multiple of 2^(7 - level). Output: five maps, levels 3 to
    7, (N, channels, h, w).

    Args:
        inputs: Channels of the three maps.
        channels: Channels of the results.
        cells: Number of cells.
        tensorflow: Pooling pads as TensorFlow does, and convolutions before a batch norm have a bias, as in weights
            that TensorFlow made.
    """

    def __init__(self, inputs: Sequence[int], *, channels: int, cells: int, tensorflow: bool) -> None:
        super().__init__()
        self.tensorflow = tensorflow
        self.resample = nn.ModuleDict({"3": pointwise_bn(inputs[-1], channels, bias=tensorflow)})
        first = {number: incoming for number, incoming in enumerate(inputs) if incoming != channels}
        self.cell = nn.ModuleList(
            BiFPNCell(channels, inputs=first if index == 0 else {}, tensorflow=tensorflow) for index in range(cells)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = list(maps[:_BACKBONE_LEVELS])
        levels.append(halved(self.resample["3"](levels[-1]), tensorflow=self.tensorflow))
        levels.append(halved(levels[-1], tensorflow=self.tensorflow))
        for cell in self.cell:
            levels = cell(levels)
        return levels


def pointwise_bn(inputs: int, outputs: int, *, bias: bool) -> nn.Sequential:
    """A 1x1 convolution and a batch norm, no activation."""
    norm = nn.BatchNorm2d(outputs, eps=BN_EPS, momentum=BN_MOMENTUM)
    inner = nn.Sequential(OrderedDict(conv=nn.Conv2d(inputs, outputs, 1, bias=bias), bn=norm))
    return nn.Sequential(OrderedDict(conv=inner))


def halved(x: Tensor, *, tensorflow: bool) -> Tensor:
    """Maxima over 3x3 windows, every second one; both sides are even.

    TensorFlow pads an even side by one pixel at its end, with minus infinity. That is what pooling with the last window
    cut off computes, and no infinity gets into the graph.
    """
    if tensorflow:
        return functional.max_pool2d(x, 3, stride=2, ceil_mode=True)
    return functional.max_pool2d(x, 3, stride=2, padding=1)
