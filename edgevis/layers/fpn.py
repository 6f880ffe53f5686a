"""Feature pyramid network: maps of four scales, each with what the coarser ones know; and a semantic head over them.

Papers: Lin, Dollár, Girshick, He, Hariharan, Belongie, "Feature Pyramid Networks for Object Detection", CVPR 2017;
Kirillov, Girshick, He, Dollár, "Panoptic Feature Pyramid Networks", CVPR 2019, section 3.2, the semantic head.
Provenance: our own code; parameters bear detectron2's names (facebookresearch/detectron2, Apache-2.0).
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.layers.group_norm import GroupNorm

FPN_LEVELS = (2, 3, 4, 5)
"""The map of level L is at 1 / 2^L of the image's sides."""

GROUPS = 32
"""Of the head's group norms; its width is a multiple."""


class FPN(nn.Module):
    """Lateral 1x1 convolutions, nearest enlargement and sums from coarse to fine, a 3x3 convolution for each level.

    Input: four maps, levels 2 to 5, each side half of the one before. Output: four maps (N, channels, h, w) of the
    same sizes.

    Args:
        inputs: Channels of the four maps, the finest first.
        channels: Channels of the results.
    """

    def __init__(self, inputs: Sequence[int], *, channels: int) -> None:
        super().__init__()
        for level, incoming in zip(FPN_LEVELS, inputs, strict=True):
            self.add_module(f"fpn_lateral{level}", nn.Conv2d(incoming, channels, 1))
            self.add_module(f"fpn_output{level}", nn.Conv2d(channels, channels, 3, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        merged = self.get_submodule(f"fpn_lateral{FPN_LEVELS[-1]}")(maps[-1])
        results = [self.get_submodule(f"fpn_output{FPN_LEVELS[-1]}")(merged)]
        for level, x in zip(FPN_LEVELS[-2::-1], maps[-2::-1], strict=True):
            enlarged = functional.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = self.get_submodule(f"fpn_lateral{level}")(x) + enlarged
            results.insert(0, self.get_submodule(f"fpn_output{level}")(merged))
        return results


class SemanticFPNHead(nn.Module):
    """Each level is convolved and enlarged to 1/4 of the image's sides; their sum is classified.

    Input: four maps (N, inputs, h, w), levels 2 to 5. Output: logits (N, classes, h, w) of level 2's size.

    Args:
        inputs: Channels of the maps.
        width: Channels of the convolutions, a multiple of :data:`GROUPS`.
        classes: Maps of logits.
    """

    def __init__(self, inputs: int, *, width: int, classes: int) -> None:
        super().__init__()
        for level in FPN_LEVELS:
            doublings = level - FPN_LEVELS[0]
            chain = nn.Sequential()
            for place in range(max(1, doublings)):
                chain.append(_ConvGroupNorm(inputs if place == 0 else width, width))
                # Level 2's convolution is followed by none; it keeps its place, so that numbers are detectron2's.
                chain.append(_Doubled() if doublings else nn.Identity())
            self.add_module(f"p{level}", chain)
        self.predictor = nn.Conv2d(width, classes, 1)
        # He's initialisation over outputs, as in detectron2, would make logits of 8 times the features' size here.
        nn.init.normal_(self.predictor.weight, std=width**-0.5)
        nn.init.zeros_(self.predictor.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        chains = [self.get_submodule(f"p{level}") for level in FPN_LEVELS]
        summed = torch.stack([chain(x) for chain, x in zip(chains, maps, strict=True)]).sum(0)
        logits: Tensor = self.predictor(summed)
        return logits


def doubled(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, C, 2 h, 2 w), bilinear, pixel centres at (i + 0.5) / n."""
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return doubled(x)


class _ConvGroupNorm(nn.Conv2d):
    """A 3x3 convolution without bias, group norm, ReLU; the norm is a part of the convolution, as in detectron2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.norm = GroupNorm(GROUPS, outputs)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = torch.relu(self.norm(super().forward(input)))
        return result
