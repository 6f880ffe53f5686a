"""A feature pyramid with two more levels: PolarMask's neck, as of FCOS.

Papers: Lin, Dollár, Girshick, He, Hariharan, Belongie, "Feature Pyramid Networks for Object Detection", CVPR 2017,
section 3; Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, section 3.2.
Provenance: our own code; parameters bear the names of the authors' code of PolarMask (xieenze/PolarMask, Apache-2.0).
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

_MORE = 2


class PolarNeck(nn.Module):
    """Maps at 1/8, 1/16 and 1/32 of the image's sides become five, at 1/8 to 1/128, with equal channels.

    Input: three maps (N, inputs, h, w), each half the size of the one before. Output: five maps (N, channels, h, w):
    a 3x3 convolution of each map plus the enlarged sum of the smaller ones; two more halve the last by 3x3
    convolutions, the second of them after a ReLU.

    Args:
        inputs: Channels of the three maps.
        channels: Of the five.
    """

    def __init__(self, inputs: Sequence[int], *, channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_named(nn.Conv2d(width, channels, 1)) for width in inputs)
        self.fpn_convs = nn.ModuleList(
            _named(nn.Conv2d(channels, channels, 3, stride=stride, padding=1))
            for stride in (*(1 for _ in inputs), *(2,) * _MORE)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        sums: list[Tensor] = []
        for lateral, x in reversed(list(zip(self.lateral_convs, maps, strict=True))):
            x = lateral(x)
            sums.insert(0, x + functional.interpolate(sums[0], scale_factor=2.0, mode="nearest") if sums else x)
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, sums, strict=False)]
        for number, conv in enumerate(list(self.fpn_convs)[len(sums) :]):
            outputs.append(conv(functional.relu(outputs[-1]) if number else outputs[-1]))
        return outputs


def _named(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=conv))
