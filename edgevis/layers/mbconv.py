"""The mobile blocks that MobileNetV2 and EfficientNet are made of.

Papers: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018; Hu, Shen, Sun,
"Squeeze-and-Excitation Networks", CVPR 2018. Our own code; parameters bear the names of timm
(huggingface/pytorch-image-models, Apache-2.0), so the state dicts published there load strictly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from runtime.errors import InputError


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does, with padding that does not depend on the input's size.

    At stride 1 that is the usual symmetric padding. At stride 2 it pads ``kernel - 2`` in all, the odd one at the
    right and the bottom, which is TensorFlow's choice for even sides; odd sides are not meant. So the exported graph
    has no shape arithmetic.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        total = kernel - stride
        first, last = total // 2, total - total // 2
        super().__init__(
            inputs, outputs, kernel, stride, padding=first if first == last else 0, groups=groups, bias=False
        )
        self.pad = nn.Identity() if first == last else nn.ZeroPad2d((first, last, first, last))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.pad(input))


class SqueezeExcite(nn.Module):
    """Weighs each channel by a two-layer network on the channels' means. (N, C, h, w) -> (N, C, h, w)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.act1 = nn.SiLU()
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.conv_expand(weight))


class DepthwiseSeparable(nn.Module):
    """Depthwise convolution, then a linear 1x1; the input is added where its shape is the output's."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        excite: bool,
        same: bool,
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and inputs == outputs
        self.conv_dw = convolution(inputs, inputs, kernel, stride=stride, groups=inputs, same=same)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act = activation()
        self.se = SqueezeExcite(inputs, inputs // 4) if excite else nn.Identity()
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.bn2(self.conv_pw(self.se(self.act(self.bn1(self.conv_dw(x))))))
        return x + result if self.residual else result


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1; the input is added where its shape is the output's."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        expansion: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        excite: bool,
        same: bool,
    ) -> None:
        super().__init__()
        middle = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv_pw = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.act1 = activation()
        self.conv_dw = convolution(middle, middle, kernel, stride=stride, groups=middle, same=same)
        self.bn2 = nn.BatchNorm2d(middle)
        self.act2 = activation()
        # The squeeze is a quarter of the block's input, not of its middle.
        self.se = SqueezeExcite(middle, inputs // 4) if excite else nn.Identity()
        self.conv_pwl = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        middle = self.act2(self.bn2(self.conv_dw(self.act1(self.bn1(self.conv_pw(x))))))
        result: Tensor = self.bn3(self.conv_pwl(self.se(middle)))
        return x + result if self.residual else result


def convolution(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, same: bool = False
) -> nn.Conv2d:
    """A convolution without bias, padded by half its kernel on all sides, or as TensorFlow does (``same``)."""
    if same:
        return SameConv2d(inputs, outputs, kernel, stride=stride, groups=groups)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def initialise(model: nn.Module) -> None:
    """Normal weights with the variance that keeps a signal's size over a layer's outputs; zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def mobile_stages(
    inputs: int,
    first: int,
    rows: Iterable[tuple[int, int, int, int]],
    *,
    activation: type[nn.Module],
    excite: bool,
    same: bool,
) -> nn.Sequential:
    """The stages of MobileNetV2 and of what was made of it: (N, inputs, h, w) -> the map after the last one.

    Args:
        inputs: Channels of the stem.
        first: Channels of the first stage, one :class:`DepthwiseSeparable`.
        rows: Of each further stage: channels, blocks, kernel, stride of the first block. Blocks expand by 6.
        activation: Of all blocks.
        excite: Whether blocks have squeeze-and-excitation.
        same: Pad as TensorFlow does for even sides.
    """
    stage = DepthwiseSeparable(inputs, first, kernel=3, stride=1, activation=activation, excite=excite, same=same)
    stages = nn.Sequential(nn.Sequential(stage))
    inputs = first
    for outputs, blocks, kernel, stride in rows:
        stage_blocks = nn.Sequential()
        for index in range(blocks):
            block = InvertedResidual(
                outputs if index else inputs,
                outputs,
                expansion=6,
                kernel=kernel,
                stride=1 if index else stride,
                activation=activation,
                excite=excite,
                same=same,
            )
            stage_blocks.append(block)
        stages.append(stage_blocks)
        inputs = outputs
    return stages


def maps_after(stages: Iterable[nn.Module], image: Tensor, places: Collection[int]) -> tuple[Tensor, ...]:
    """The outputs of the stages at ``places``, from 0, of all stages one after another."""
    maps = []
    for place, stage in enumerate(stages):
        image = stage(image)
        if place in places:
            maps.append(image)
    return tuple(maps)


class MobileTrunk(nn.Module):
    """A stem and stages of mobile blocks. Subclasses make the parts."""

    conv_stem: nn.Module
    bn1: nn.Module
    act1: nn.Module
    blocks: nn.Sequential

    def stem(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 32, H/2, W/2)."""
        result: Tensor = self.act1(self.bn1(self.conv_stem(image)))
        return result


class MobileBackbone(MobileTrunk):
    """Maps of three scales for few-shot segmentation. Input: (N, 3, H, W) float32 RGB, odd sides.

    Its blocks end without an activation, so what they give has the signs that hybrid masking asks for. At odd sides
    TensorFlow's padding is the symmetric one that is used here, so weights made by TensorFlow mean what they meant.

    Attributes:
        places: Which of ``blocks``, from 0, are stages 1 to 4, at a 4th, an 8th, a 16th and a 32nd of the sides.
    """

    places: ClassVar[tuple[int, ...]]

    def features(self, image: Tensor, stages: Sequence[int] = (2, 3, 4)) -> list[list[Tensor]]:
        """The output of each block of the stages; as :meth:`edgevis.layers.resnet.ResNet.features`."""
        if image.dim() != 4 or image.shape[1] != 3:
            raise InputError(f"image is {tuple(image.shape)}; allowed: (N, 3, H, W)")
        chosen = [self.places[stage - 1] for stage in stages]
        x, pyramid = self.stem(image), []
        for place, stage in enumerate(self.blocks):
            maps: list[Tensor] = []
            for block in cast(nn.Sequential, stage):
                x = block(x)
                maps.append(x)
            if place in chosen:
                pyramid.append(maps)
        return pyramid
