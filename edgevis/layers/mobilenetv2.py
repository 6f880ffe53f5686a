"""The trunk of MobileNetV2: of the classifier whole, and as backbones that give maps of three scales.

Paper: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
Provenance: our own code; parameters bear timm's names.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevis.layers.mbconv import MobileBackbone, MobileTrunk, convolution, initialise, maps_after, mobile_stages

CHANNELS = 320
"""Output channels of the last stage."""

_STEM, _FIRST = 32, 16
# Per stage after the first: channels, blocks, stride of the first block.
_STAGES = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (CHANNELS, 1, 1))
# Which of them are a backbone's stages 1 to 4, at a 4th, an 8th, a 16th and a 32nd of the image's sides: of each scale
# the last one that has several blocks of one width.
_OF_BACKBONE = (1, 2, 4, 5)
# The last stages at 1/4, 1/8, 1/16 and 1/32.
_OF_MAPS = (1, 2, 4, 6)


def stem(*, same: bool) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Convolution, batch norm and activation before the first stage."""
    return convolution(3, _STEM, 3, stride=2, same=same), nn.BatchNorm2d(_STEM), nn.ReLU6()


def stages(*, same: bool, count: int = len(_STAGES) + 1) -> nn.Sequential:
    """The first ``count`` stages; ``same`` pads as TensorFlow does for even sides."""
    rows = ((channels, blocks, 3, stride) for channels, blocks, stride in _STAGES[: count - 1])
    return mobile_stages(_STEM, _FIRST, rows, activation=nn.ReLU6, excite=False, same=same)


class MobileNetV2Backbone(MobileBackbone):
    """MobileNetV2 for few-shot segmentation, see :class:`edgevis.layers.mbconv.MobileBackbone`; input -1..1.

    Attributes:
        depths: Blocks of stages 1 to 4.
        channels: Channels that each stage puts out.
        mean, std: Of each channel of its input, 0..1.
    """

    places = _OF_BACKBONE
    depths = tuple(_STAGES[place - 1][1] for place in _OF_BACKBONE)
    channels = tuple(_STAGES[place - 1][0] for place in _OF_BACKBONE)
    mean = std = (0.5,) * 3

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1, self.act1 = stem(same=False)
        self.blocks = stages(same=False, count=_OF_BACKBONE[-1] + 1)
        initialise(self)


class MobileNetV2Trunk(MobileTrunk):
    """The stem and the stages, for detection and segmentation. Input: (N, 3, H, W) float32 RGB, sides multiples of 32.

    Args:
        same: Pad as TensorFlow does, as published weights that it made need.

    Attributes:
        map_channels: Of the maps of :meth:`maps`.
        channels: Of the maps of :meth:`pyramid`.
    """

    map_channels = (24, 32, 96, CHANNELS)
    channels = map_channels[1:]

    def __init__(self, *, same: bool = False) -> None:
        super().__init__()
        self.conv_stem, self.bn1, self.act1 = stem(same=same)
        self.blocks = stages(same=same)

    def maps(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> the maps (N, C, h, w) at 1/4, 1/8, 1/16 and 1/32 of the image's sides."""
        return maps_after(self.blocks, self.stem(image), _OF_MAPS)

    def pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> maps (N, 32, H/8, W/8), (N, 96, H/16, W/16), (N, 320, H/32, W/32)."""
        return self.maps(image)[1:]
