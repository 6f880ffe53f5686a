"""DY-MobileNetV2: MobileNetV2 with dynamic convolutions, an encoder for few-shot classification.

Paper: Chen, Dai, Liu, Chen, Yuan, Liu, "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020. Every
convolution but the first is dynamic with four kernels; the classifier is not. The paper prints 11.1 M parameters and
says that the attention's hidden width is a quarter of a layer's input; that makes 12.4 M, and no other reading of the
text gives all four of its totals, so the width is an option.
Provenance: our own code; nobody published weights.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from edgevis.layers.dynamic_conv import DynamicConv2d, KernelAttention, made_dynamic
from edgevis.layers.mbconv import initialise
from edgevis.layers.mobilenetv2 import CHANNELS, stages, stem
from edgevis.models.allowed import CLASSES_OR_NONE, whole
from edgevis.models.entry import ModelEntry
from edgevis.models.mobilenetv2 import DEPLOYMENT as STATIC
from edgevis.models.mobilenetv2 import EMBEDDING, SMALL
from runtime.bundle.spec import Deployment, Graph, TensorSpec

KERNELS, SQUEEZE = 4, 4
ANNEALED_EPOCHS, HOTTEST = 10.0, 30.0
"""Section 3.3: the softmax's temperature falls linearly from 30 to 1 in the first ten epochs."""

_SIDE = STATIC.preprocess.height
_SIDES = whole(64, 640, multiple=32)
_KERNELS = whole(1, 16)
_SQUEEZES = whole(1, 64)


def _deployment(side: int) -> Deployment:
    image = TensorSpec("image", "float32", ("N", 3, side, side))
    output = TensorSpec("embedding", "float32", ("N", EMBEDDING))
    preprocess = replace(STATIC.preprocess, height=side, width=side)
    return replace(STATIC, graphs=(Graph("encode", inputs=(image,), outputs=(output,)),), preprocess=preprocess)


class DynamicMobileNetV2(nn.Module):
    """MobileNetV2 1.0 whose convolutions mix their kernels for each image.

    Input: image (N, 3, side, side) float32, RGB, -1 .. 1. Output of :meth:`encode`: embedding (N, 1280) float32, >= 0,
    rows not normalised: the runtime L2-normalises them. Output of ``forward``: logits (N, num_classes).

    Args:
        num_classes: Outputs of the classifier, which only ``forward`` uses; 0 leaves it out.
        side: Of the images, a multiple of 32. No parameter depends on it.
        kernels: Of each convolution.
        squeeze: A layer's input channels by the hidden width of its attention.
    """

    def __init__(self, *, num_classes: int, side: int, kernels: int, squeeze: int) -> None:
        super().__init__()
        self.side = side
        self.conv_stem, self.bn1, self.act1 = stem(same=False)
        self.blocks = stages(same=False)
        made_dynamic(self.blocks, kernels=kernels, squeeze=squeeze)
        self.conv_head = DynamicConv2d(CHANNELS, EMBEDDING, 1, kernels=kernels, hidden=CHANNELS // squeeze)
        self.bn2 = nn.BatchNorm2d(EMBEDDING)
        self.act2 = nn.ReLU6()
        self.classifier = nn.Linear(EMBEDDING, num_classes) if num_classes else nn.Identity()
        initialise(self)
        for module in self.modules():  # a training begins with nearly equal shares
            if isinstance(module, KernelAttention):
                nn.init.normal_(module.fc2.weight, std=0.01)

    def begin_step(self, step: int, *, epochs: float) -> None:
        """See :class:`edgevis.training.task.StepDependentModel`: shares are nearly equal at first: all learn."""
        hot = max(HOTTEST - (HOTTEST - 1) * epochs / ANNEALED_EPOCHS, 1.0)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, KernelAttention):
                    module.temperature.fill_(hot)

    def encode(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to embedding (N, 1280) float32."""
        x = self.blocks(self.act1(self.bn1(self.conv_stem(image))))
        x = self.act2(self.bn2(self.conv_head(x)))
        embedding: Tensor = x.mean((2, 3))
        return embedding

    def forward(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to logits (N, num_classes) float32."""
        result: Tensor = self.classifier(self.encode(image))
        return result


def dy_mobilenetv2(
    *, num_classes: int = 1000, side: int = _SIDE, kernels: int = KERNELS, squeeze: int = SQUEEZE
) -> DynamicMobileNetV2:
    """DY-MobileNetV2 1.0; see :class:`DynamicMobileNetV2` for the options."""
    CLASSES_OR_NONE.require("num_classes", num_classes)
    _SIDES.require("side", side)
    _KERNELS.require("kernels", kernels)
    _SQUEEZES.require("squeeze", squeeze)
    return DynamicMobileNetV2(num_classes=num_classes, side=side, kernels=kernels, squeeze=squeeze)


def _deploy(module: nn.Module) -> Deployment:
    return _deployment(cast(DynamicMobileNetV2, module).side)


DEPLOYMENT = _deployment(_SIDE)

ENTRIES = (
    ModelEntry(
        name="dy-mobilenetv2",
        build=dy_mobilenetv2,
        deployment=DEPLOYMENT,
        paper="Chen, Dai, Liu, Chen, Yuan, Liu: Dynamic Convolution: Attention over Convolution Kernels, CVPR 2020",
        licence="Apache-2.0",
        parameters=12_400_596,
        deploy=_deploy,
        classifier=("classifier.",),
        recipes={"small": replace(SMALL, loss="global", epochs=30, learning_rate=1e-3)},
    ),
)
