"""GhostNet 1.0: half of each block's maps are computed, the other half is made of them by depthwise convolutions.

Paper: Han, Wang, Tian, Guo, Xu, Xu, "GhostNet: More Features from Cheap Operations", CVPR 2020.
Provenance: our own code; parameters bear the names of timm's ``ghostnet_100`` (huggingface/pytorch-image-models,
Apache-2.0), so the state dict published there loads strictly.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.layers.mbconv import convolution, initialise, maps_after

EMBEDDING = 1280

_STEM = 16
_LAST = 960
# Of each block: kernel, channels within, channels out, squeeze-and-excitation, stride.
_STAGES = (
    ((3, 16, 16, False, 1),),
    ((3, 48, 24, False, 2),),
    ((3, 72, 24, False, 1),),
    ((5, 72, 40, True, 2),),
    ((5, 120, 40, True, 1),),
    ((3, 240, 80, False, 2),),
    (
        (3, 200, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 480, 112, True, 1),
        (3, 672, 112, True, 1),
    ),
    ((5, 672, 160, True, 2),),
    (
        (5, 960, 160, False, 1),
        (5, 960, 160, True, 1),
        (5, 960, 160, False, 1),
        (5, 960, 160, True, 1),
    ),
)
# The last stages at 1/8, 1/16 and 1/32.
_OF_PYRAMID = (4, 6, 8)
# Parts of the names of convolutions that no ReLU follows.
_LINEAR = ("ghost2", "shortcut", "conv_dw")


class GhostNetTrunk(nn.Module):
    """The stem and the stages, for detection. Input: (N, 3, H, W) float32 RGB, ImageNet mean and standard deviation.

    Attributes:
        channels: Of the maps of :meth:`pyramid`.
    """

    channels = (40, 112, 160)

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = convolution(3, _STEM, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.blocks = nn.Sequential()
        inputs = _STEM
        for rows in _STAGES:
            stage = nn.Sequential()
            for kernel, middle, outputs, excite, stride in rows:
                stage.append(_Block(inputs, middle, outputs, kernel=kernel, stride=stride, excite=excite))
                inputs = outputs
            self.blocks.append(stage)
        initialise(self)
        # Half the variance where no ReLU follows: 16 blocks would multiply a signal.
        with torch.no_grad():
            for name, module in self.named_modules():
                if isinstance(module, nn.Conv2d) and any(part in name for part in _LINEAR):
                    module.weight.mul_(0.5**0.5)

    def stem(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 16, H/2, W/2)."""
        return torch.relu(self.bn1(self.conv_stem(image)))

    def pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> maps (N, 40, H/8, W/8), (N, 112, H/16, W/16), (N, 160, H/32, W/32)."""
        return maps_after(self.blocks, self.stem(image), _OF_PYRAMID)


class GhostNet(GhostNetTrunk):
    """GhostNet 1.0. Input: (N, 3, H, W) float32 RGB, ImageNet mean and standard deviation.

    Args:
        num_classes: Outputs of the classifier; 0 leaves it out.
    """

    def __init__(self, *, num_classes: int = 0) -> None:
        super().__init__()
        last = nn.Sequential()
        last.add_module("conv", nn.Conv2d(self.channels[-1], _LAST, 1, bias=False))
        last.add_module("bn1", nn.BatchNorm2d(_LAST))
        last.add_module("act", nn.ReLU())
        self.blocks.append(nn.Sequential(last))
        self.conv_head = nn.Conv2d(_LAST, EMBEDDING, 1)
        self.classifier = nn.Linear(EMBEDDING, num_classes) if num_classes else nn.Identity()
        for added in (last, self.conv_head, self.classifier):
            initialise(added)

    def pooled(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1280), >= 0, what the classifier sees."""
        x = self.blocks(self.stem(image)).mean((2, 3), keepdim=True)
        return torch.relu(self.conv_head(x)).flatten(1)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, num_classes), or the pooled vector where there is no classifier."""
        result: Tensor = self.classifier(self.pooled(image))
        return result


class _Ghost(nn.Module):
    """(N, C, h, w) -> (N, outputs, h, w): a 1x1 convolution to half of them, and a depthwise one of what it gives."""

    def __init__(self, inputs: int, outputs: int, *, relu: bool) -> None:
        super().__init__()
        half = -(-outputs // 2)
        self.outputs = outputs
        self.primary_conv = nn.Sequential(nn.Conv2d(inputs, half, 1, bias=False), nn.BatchNorm2d(half))
        self.cheap_operation = nn.Sequential(convolution(half, half, 3, groups=half), nn.BatchNorm2d(half))
        if relu:
            self.primary_conv.append(nn.ReLU())
            self.cheap_operation.append(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary_conv(x)
        both = torch.cat((first, self.cheap_operation(first)), dim=1)
        return both if both.shape[1] == self.outputs else both[:, : self.outputs]


class _HardExcite(nn.Module):
    """Squeeze-and-excitation with ReLU and the piecewise linear sigmoid, relu6(x + 3) / 6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = (channels // 4 + 2) // 4 * 4  # a quarter, rounded to a multiple of four
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv_expand(torch.relu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * (functional.relu6(weight + 3.0) * (1.0 / 6.0))


class _Block(nn.Module):
    """Expanding and projecting ghost module, between them a depthwise convolution where the stride is 2."""

    def __init__(self, inputs: int, middle: int, outputs: int, *, kernel: int, stride: int, excite: bool) -> None:
        super().__init__()
        self.ghost1 = _Ghost(inputs, middle, relu=True)
        self.conv_dw: nn.Module = nn.Identity()
        self.bn_dw: nn.Module = nn.Identity()
        if stride > 1:
            self.conv_dw = convolution(middle, middle, kernel, stride=stride, groups=middle)
            self.bn_dw = nn.BatchNorm2d(middle)
        self.se = _HardExcite(middle) if excite else nn.Identity()
        self.ghost2 = _Ghost(middle, outputs, relu=False)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                convolution(inputs, inputs, kernel, stride=stride, groups=inputs),
                nn.BatchNorm2d(inputs),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        main = self.bn_dw(self.conv_dw(self.ghost1(x)))
        result: Tensor = self.ghost2(self.se(main)) + self.shortcut(x)
        return result
