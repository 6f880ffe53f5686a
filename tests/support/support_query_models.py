"""Small few-shot segmentation models, and images with masks for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgevis.layers.resnet import ResNet
from edgevis.models.hsnet import HSNet, HSNetLearner


def shorten_hsnet(model: HSNet) -> None:
    """Give the model a backbone of five blocks instead of sixteen, and a learner for it: quick to export."""
    model.backbone = ResNet((1, 1, 2, 1), width=4).requires_grad_(False)
    model.learner = HSNetLearner((1, 2, 1))
    model.eval()


def shrink(model: nn.Module, learner_of: Callable[[ResNet], nn.Module]) -> None:
    """Give the model a backbone with one block per stage, and a learner for it whose parameters hide no exchange."""
    backbone = ResNet((1, 1, 1, 1), width=2)
    model.backbone = backbone.requires_grad_(False)
    model.learner = learner = learner_of(backbone)
    for parameter in learner.parameters():  # no zeros and ones
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.eval()


def images_and_masks(count: int, side: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (N, 3, side, side), and masks (N, side, side) of rectangles of other places and sizes."""
    image = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(count, side, side)
    for index in range(count):
        top, right = side // 8 + index, side * 11 // 16 + side * index // 8
        mask[index, top : side * 9 // 16, side * 3 // 10 : right] = 1
    return image, mask
