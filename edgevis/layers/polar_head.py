"""PolarMask's head: towers for class, box and rays that all levels share.

Paper: Xie, Sun, Song, Wang, Liu, Liang, Shen, Luo, "PolarMask: Single Shot Instance Segmentation With Polar
Representation", CVPR 2020, section 3.1 and figure 2.
Provenance: our own code; parameters bear the names of the authors' code (xieenze/PolarMask, Apache-2.0).
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.data.polar_targets import RAYS
from edgevis.layers.polar_code import MAX_LOG_DISTANCE, STRIDES

# The probability of an object that an untrained head gives everywhere, after RetinaNet (Lin et al., ICCV 2017).
_PRIOR = 0.01
_STD = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class PolarMaps:
    """The raw maps of all levels, one tensor for each.

    Attributes:
        classes: (N, num_classes, h, w), logits.
        centerness: (N, 1, h, w), logits.
        boxes: (N, 4, h, w): distances to left, top, right and bottom in pixels, above 0.
        rays: (N, 36, h, w): distances in pixels, above 0.
    """

    classes: list[Tensor]
    centerness: list[Tensor]
    boxes: list[Tensor]
    rays: list[Tensor]

    def rows(self) -> Tensor:
        """(N, P, 41 + num_classes): boxes, rays, centreness and classes of all points, in the order of
        :func:`edgevis.layers.polar_code.polar_points`.
        """
        maps = zip(self.boxes, self.rays, self.centerness, self.classes, strict=True)
        return torch.cat([torch.cat(level, dim=1).flatten(2) for level in maps], dim=2).transpose(1, 2)


class Scale(nn.Module):
    """A factor that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class PolarHead(nn.Module):
    """Convolutions with group norm and ReLU, one tower each for class, box and rays; centreness comes from the first.

    Input: a map for each level, (N, channels, h, w). Output: :class:`PolarMaps`.

    Args:
        channels: Of the maps and of the towers.
        num_classes: Number of classes.
        repeats: Convolutions of each tower.
        groups: Of the group norms; divides ``channels``.
    """

    def __init__(self, channels: int, num_classes: int, *, repeats: int = 4, groups: int = 32) -> None:
        super().__init__()
        self.cls_convs = nn.ModuleList(_convolution(channels, groups) for _ in range(repeats))
        self.reg_convs = nn.ModuleList(_convolution(channels, groups) for _ in range(repeats))
        self.mask_convs = nn.ModuleList(_convolution(channels, groups) for _ in range(repeats))
        self.polar_cls = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.polar_reg = nn.Conv2d(channels, 4, 3, padding=1)
        self.polar_mask = nn.Conv2d(channels, RAYS, 3, padding=1)
        self.polar_centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales_bbox = nn.ModuleList(Scale() for _ in STRIDES)
        self.scales_mask = nn.ModuleList(Scale() for _ in STRIDES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.polar_cls.get_parameter("bias"), -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, maps: Sequence[Tensor]) -> PolarMaps:
        result = PolarMaps([], [], [], [])
        for x, scale_box, scale_mask in zip(maps, self.scales_bbox, self.scales_mask, strict=True):
            seen = _through(self.cls_convs, x)
            result.classes.append(self.polar_cls(seen))
            result.centerness.append(self.polar_centerness(seen))
            result.boxes.append(_distances(scale_box(self.polar_reg(_through(self.reg_convs, x)))))
            result.rays.append(_distances(scale_mask(self.polar_mask(_through(self.mask_convs, x)))))
        return result


def _convolution(channels: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    # Not edgevis' operator: engines' sums over a group lose 3e-6 at inputs of 1,024 pixels and 6e-5 at 4,096, and
    # TensorRT-RTX builds in half of the time.
    return nn.Sequential(OrderedDict(conv=conv, gn=nn.GroupNorm(groups, channels)))


def _through(tower: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in tower:
        x = functional.relu(layer(x))
    return x


def _distances(code: Tensor) -> Tensor:
    return code.float().clamp(max=MAX_LOG_DISTANCE).exp()
