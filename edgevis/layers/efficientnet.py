"""EfficientNet-b0: the backbone of EPRI-Net.

Paper: Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.
Provenance: our own code; parameters bear the names of timm's ``efficientnet_b0`` (huggingface/pytorch-image-models,
Apache-2.0), so the state dicts published there load strictly.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevis.layers.mbconv import DepthwiseSeparable, InvertedResidual, convolution, initialise

HEAD_CHANNELS = 1280
STAGE_CHANNELS = (16, 24, 40, 80, 112, 192, 320)

# Per stage after the first: channels, blocks, kernel, stride of the first block.
_STAGES = ((24, 2, 3, 2), (40, 2, 5, 2), (80, 3, 3, 2), (112, 3, 5, 1), (192, 4, 5, 2), (320, 1, 3, 1))
_STRIDED_192 = 192


class EfficientNetB0(nn.Module):
    """EfficientNet-b0. Input: (N, 3, H, W) float32 RGB, ImageNet mean and standard deviation.

    Use it whole (``forward``: logits), or run :meth:`stem`, each of ``blocks`` and :meth:`head` for the maps between.

    Args:
        num_classes: Classes of the linear classifier; 0 leaves it out, and ``forward`` gives the pooled (N, 1280).
        last_stride: Stride of the 192-channel stage: 2 as published (maps at 1/32), or 1 (the last ones at 1/16).
    """

    def __init__(self, *, num_classes: int = 1000, last_stride: int = 2) -> None:
        super().__init__()
        self.conv_stem = convolution(3, 32, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = nn.SiLU()
        first = DepthwiseSeparable(32, 16, kernel=3, stride=1, activation=nn.SiLU, excite=True, same=False)
        stages = [nn.Sequential(first)]
        inputs = 16
        for outputs, blocks, kernel, stride in _STAGES:
            stride = last_stride if outputs == _STRIDED_192 else stride
            stages.append(_stage(inputs, outputs, blocks=blocks, kernel=kernel, stride=stride))
            inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(inputs, HEAD_CHANNELS, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD_CHANNELS)
        self.act2 = nn.SiLU()
        self.classifier = nn.Linear(HEAD_CHANNELS, num_classes) if num_classes else nn.Identity()
        initialise(self)

    def stem(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 32, H/2, W/2)."""
        result: Tensor = self.act1(self.bn1(self.conv_stem(image)))
        return result

    def head(self, x: Tensor) -> Tensor:
        """The map after the last stage, (N, 320, h, w) -> (N, 1280, h, w)."""
        result: Tensor = self.act2(self.bn2(self.conv_head(x)))
        return result

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_classes) logits, or (N, 1280) without a classifier."""
        result: Tensor = self.classifier(self.head(self.blocks(self.stem(image))).mean((2, 3)))
        return result


def _stage(inputs: int, outputs: int, *, blocks: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            InvertedResidual(
                inputs if index == 0 else outputs,
                outputs,
                expansion=6,
                kernel=kernel,
                stride=stride if index == 0 else 1,
                activation=nn.SiLU,
                excite=True,
                same=False,
            )
            for index in range(blocks)
        )
    )
