"""RegNet X and Y: plain grouped convolutions, the backbone that suits integer arithmetic.

Paper: Radosavovic, Kosaraju, Girshick, He, Dollár, "Designing Network Design Spaces", CVPR 2020. X has neither
depthwise convolutions nor squeeze-and-excitation nor values below zero; Y adds squeeze-and-excitation.
Provenance: our own code; parameters bear the names of timm (huggingface/pytorch-image-models, Apache-2.0), so the state
dicts published there load strictly.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from edgevis.layers.imagenet import MEAN, STD
from edgevis.layers.mbconv import initialise
from edgevis.models.allowed import one_of
from runtime.errors import InputError

_STAGES = 4

_STEM = 32
_QUANTUM = 8
_SQUEEZE = 4


@dataclass(frozen=True, slots=True)
class RegNetDesign:
    """The numbers that a RegNet's widths and depths follow from (section 3.3 of the paper).

    Attributes:
        width, slope: Of the line u_j = width + slope * j, j = 0 .. depth - 1, which the blocks' widths approximate.
        multiplier: The ratio of the widths of neighbouring stages.
        depth: Blocks in all.
        group: Channels of a group of the 3x3 convolutions.
        excite: Whether blocks have squeeze-and-excitation: RegNet Y.
        half_up: How a width that lies halfway between two multiples of the group is rounded: up, as torchvision's
            networks of the same name do, instead of to the even one.
    """

    width: int
    slope: float
    multiplier: float
    depth: int
    group: int
    excite: bool = False
    half_up: bool = False

    def stages(self) -> tuple[tuple[int, int], ...]:
        """Width and number of blocks of each stage."""
        widths: list[int] = []
        for place in range(self.depth):
            steps = round(math.log((self.width + self.slope * place) / self.width) / math.log(self.multiplier))
            widths.append(_QUANTUM * round(self.width * self.multiplier**steps / _QUANTUM))
        return tuple((self._fitted(width), widths.count(width)) for width in sorted(set(widths)))

    def _fitted(self, width: int) -> int:
        group = min(self.group, width)
        groups = width / group
        return group * (math.floor(groups + 0.5) if self.half_up else round(groups))


_X_400, _Y_800 = (24, 24.48, 2.54, 22, 16), (56, 38.84, 2.4, 14, 16)

DESIGNS: Mapping[str, RegNetDesign] = {
    "regnetx_002": RegNetDesign(24, 36.44, 2.49, 13, 8),
    "regnetx_004": RegNetDesign(*_X_400),
    "regnetx_004_tv": RegNetDesign(*_X_400, half_up=True),
    "regnetx_006": RegNetDesign(48, 36.97, 2.24, 16, 24),
    "regnetx_008": RegNetDesign(56, 35.73, 2.28, 16, 16),
    "regnety_002": RegNetDesign(24, 36.44, 2.49, 13, 8, excite=True),
    "regnety_004": RegNetDesign(48, 27.89, 2.09, 16, 8, excite=True),
    "regnety_006": RegNetDesign(48, 32.54, 2.32, 15, 16, excite=True),
    "regnety_008": RegNetDesign(*_Y_800, excite=True),
    "regnety_008_tv": RegNetDesign(*_Y_800, excite=True, half_up=True),
}
"""By timm's names: the paper's networks by their megaflops, and ``_tv``, torchvision's, which are others."""


class RegNet(nn.Module):
    """A RegNet. Input: (N, 3, H, W) float32 RGB, ImageNet mean and standard deviation.

    Args:
        variant: One of :data:`DESIGNS`.
        num_classes: Outputs of the classifier; 0 leaves it out.
        last_stride: Of the last stage: 2, or 1 for maps of twice its sides.

    Attributes:
        depths: Blocks of the four stages.
        channels: Channels that each stage puts out; the pooled vector has the last ones.
        mean, std: Of each channel of its input, 0..1.

    Raises:
        ModelError: There is no such variant.
    """

    mean, std = MEAN, STD

    def __init__(self, variant: str, *, num_classes: int = 0, last_stride: int = 2) -> None:
        super().__init__()
        one_of(*DESIGNS).require("variant", variant)
        design = DESIGNS[variant]
        stages = design.stages()
        self.channels: tuple[int, ...] = tuple(width for width, _ in stages)
        self.depths = tuple(depth for _, depth in stages)
        self.stem = _ConvNorm(3, _STEM, 3, stride=2, relu=True)
        inputs = _STEM
        for place, (width, depth) in enumerate(stages):
            stride = last_stride if place == _STAGES - 1 else 2
            stage = nn.Sequential()
            for block in range(depth):
                stage.add_module(
                    f"b{block + 1}",
                    _Block(inputs if block == 0 else width, width, stride=stride if block == 0 else 1, design=design),
                )
            self.add_module(f"s{place + 1}", stage)
            inputs = width
        self.head = nn.Sequential()
        if num_classes:
            self.head.add_module("fc", nn.Linear(inputs, num_classes))
        initialise(self)
        # The authors' start: by all outputs of a grouped convolution, not by a group's, with which an untrained
        # network's last map has 300 times the values of its first.
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight /= module.groups**0.5

    def features(self, image: Tensor, stages: Sequence[int] = (2, 3, 4)) -> list[list[Tensor]]:
        """The output of each block of the stages before its last ReLU, as of
        :meth:`edgevis.layers.resnet.ResNet.features`: with the signs that hybrid masking asks for.
        """
        return [sums for number, (sums, _) in enumerate(self.stages(image), start=1) if number in stages]

    def maps(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> the maps, >= 0, of the stages at 1/4, 1/8, 1/16 and 1/32 of the image's sides."""
        return tuple(maps[-1] for _, maps in self.stages(image))

    def stages(
        self, image: Tensor, *, after: Mapping[str, nn.Module] = MappingProxyType({})
    ) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Of each stage the output of each block, before its last ReLU and behind it.

        Args:
            image: (N, 3, H, W) float32.
            after: Modules that take what is behind the ReLU of a block, by the block's name, such as ``s3.b1``; the
                next block takes what they give, and so does the result.

        Raises:
            InputError: The image has another shape.
        """
        if image.dim() != 4 or image.shape[1] != 3:
            raise InputError(f"image is {tuple(image.shape)}; allowed: (N, 3, H, W)")
        x = self.stem(image)
        for number in range(1, _STAGES + 1):
            sums, maps = [], []
            for name, block in self.get_submodule(f"s{number}").named_children():
                sums.append(block(x))
                x = torch.relu(sums[-1])
                if (module := after.get(f"s{number}.{name}")) is not None:
                    x = module(x)
                maps.append(x)
            yield sums, maps

    def pooled(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D), >= 0, the mean of the last map."""
        return self.maps(image)[-1].mean((2, 3))

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes), or the pooled vector where there is no classifier."""
        result: Tensor = self.head(self.pooled(image))
        return result


class RegNetTrunk(RegNet):
    """A RegNet for detection: the last three maps.

    Attributes:
        channels: Of the maps of :meth:`pyramid`.
    """

    def __init__(self, variant: str) -> None:
        super().__init__(variant)
        self.channels = self.channels[1:]

    def pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> maps (N, C, h, w), >= 0, at 1/8, 1/16 and 1/32 of the image's sides."""
        return self.maps(image)[1:]


class _ConvNorm(nn.Sequential):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        if relu:
            self.act = nn.ReLU()


class _SqueezeExcite(nn.Module):
    """Between the 3x3 and the last 1x1 convolution; its hidden width is a quarter of the block's input."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class _Block(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolution of one width, and the shortcut; the result is the sum, before its ReLU."""

    def __init__(self, inputs: int, width: int, *, stride: int, design: RegNetDesign) -> None:
        super().__init__()
        groups = width // min(design.group, width)
        self.conv1 = _ConvNorm(inputs, width, 1, relu=True)
        self.conv2 = _ConvNorm(width, width, 3, stride=stride, groups=groups, relu=True)
        self.se = _SqueezeExcite(width, round(inputs / _SQUEEZE)) if design.excite else nn.Identity()
        self.conv3 = _ConvNorm(width, width, 1)
        self.downsample: _ConvNorm | None = None
        if stride != 1 or inputs != width:
            self.downsample = _ConvNorm(inputs, width, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        main: Tensor = self.conv3(self.se(self.conv2(self.conv1(x))))
        return main + (x if self.downsample is None else self.downsample(x))
