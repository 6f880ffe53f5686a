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

import torch
from torch import nn

from edgevis.layers.dynamic_conv import DynamicConv2d, KernelAttention, made_dynamic
from edgevis.layers.mbconv import initialise
from edgevis.layers.mobilenetv2 import CHANNELS
from edgevis.models._encoder import SIDE, deployment_by_side
from edgevis.models.allowed import whole
from edgevis.models.entry import ModelEntry
from edgevis.models.mobilenetv2 import DEPLOYMENT, EMBEDDING, PREPROCESS, SMALL, MobileNetV2

KERNELS, SQUEEZE = 4, 4
ANNEALED_EPOCHS, HOTTEST = 10.0, 30.0
"""Section 3.3: the softmax's temperature falls linearly from 30 to 1 in the first ten epochs."""

_KERNELS = whole(1, 16)
_SQUEEZES = whole(1, 64)


class DynamicMobileNetV2(MobileNetV2):
    """MobileNetV2 1.0 whose convolutions mix their kernels for each image.

    Input: image (N, 3, side, side) float32, RGB, -1 .. 1. Output of :meth:`encode`: embedding (N, 1280) float32, >= 0,
    rows not normalised: the runtime L2-normalises them. Output of ``forward``: logits (N, num_classes).

    Args:
        num_classes: Outputs of the classifier, which only ``forward`` uses; 0 leaves it out.
        side: Of the images, a multiple of 32. No parameter depends on it.
        kernels: Of each convolution.
        squeeze: A layer's input channels by the hidden width of its attention.

    Raises:
        ModelError: An option is not as described.
    """

    same = False

    def __init__(
        self, *, num_classes: int = 1000, side: int = SIDE, kernels: int = KERNELS, squeeze: int = SQUEEZE
    ) -> None:
        _KERNELS.require("kernels", kernels)
        _SQUEEZES.require("squeeze", squeeze)
        super().__init__(num_classes=num_classes, side=side)
        made_dynamic(self.blocks, kernels=kernels, squeeze=squeeze)
        self.conv_head = DynamicConv2d(CHANNELS, EMBEDDING, 1, kernels=kernels, hidden=CHANNELS // squeeze)
        for module in self.modules():
            if isinstance(module, KernelAttention):
                initialise(module)
                nn.init.normal_(module.fc2.weight, std=0.01)  # a training begins with nearly equal shares

    def begin_step(self, step: int, *, epochs: float) -> None:
        """See :class:`edgevis.training.task.StepDependentModel`: shares are nearly equal at first: all learn."""
        hot = max(HOTTEST - (HOTTEST - 1) * epochs / ANNEALED_EPOCHS, 1.0)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, KernelAttention):
                    module.temperature.fill_(hot)


ENTRIES = (
    ModelEntry(
        name="dy-mobilenetv2",
        build=DynamicMobileNetV2,
        deployment=DEPLOYMENT,
        paper="Chen, Dai, Liu, Chen, Yuan, Liu: Dynamic Convolution: Attention over Convolution Kernels, CVPR 2020",
        licence="Apache-2.0",
        parameters=12_400_596,
        deploy=deployment_by_side(PREPROCESS, EMBEDDING),
        classifier=("classifier.",),
        recipes={"small": replace(SMALL, loss="global", epochs=30, learning_rate=1e-3)},
    ),
)
