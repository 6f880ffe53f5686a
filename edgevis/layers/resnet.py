"""ResNet with bottleneck blocks: the backbone of the few-shot segmentation models.

Paper: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, in the form called v1.5: a
stage's stride sits on its 3x3 convolution.
Provenance: our own code; parameters bear torchvision's names (pytorch/vision, BSD-3-Clause), so the ``resnet50`` and
``resnet101`` state dicts published there load strictly.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgevis.state_dict import load_strict
from runtime.errors import InputError, ModelError

EXPANSION = 4
STAGES = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and the shortcut. (N, C, h, w) -> (N, 4 * width, h / stride, w / stride).

    The result is the sum, **before** the block's last ReLU: the few-shot models compare features there.
    """

    def __init__(self, inputs: int, width: int, *, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        main = torch.relu(self.bn1(self.conv1(x)))
        main = torch.relu(self.bn2(self.conv2(main)))
        main = self.bn3(self.conv3(main))
        result: Tensor = main + (x if self.downsample is None else self.downsample(x))
        return result


class ResNet(nn.Module):
    """ResNet v1.5 with bottlenecks. Input: (N, 3, H, W) float32 RGB, ImageNet mean and standard deviation.

    Args:
        depths: Blocks of the four stages.
        width: Channels after the stem; stage i (from 1) puts out ``4 * width * 2 ** (i - 1)``.
        num_classes: Classes of the linear classifier; 0 leaves it out, and ``forward`` gives the pooled features.

    Attributes:
        depths: Blocks of the four stages.
        channels: Channels that each stage puts out.

    Raises:
        ModelError: A depth, the width or the number of classes is out of range.
    """

    def __init__(self, depths: Sequence[int] = (3, 4, 6, 3), *, width: int = 64, num_classes: int = 0) -> None:
        super().__init__()
        if len(depths) != STAGES or min(depths) < 1 or width < 1 or num_classes < 0:
            raise ModelError(
                f"a ResNet of depths {tuple(depths)}, width {width} and {num_classes} classes; "
                "allowed: four depths of 1 or more, a width of 1 or more, 0 or more classes"
            )
        self.depths = tuple(depths)
        widths = [width * 2**stage for stage in range(STAGES)]
        self.channels = tuple(EXPANSION * size for size in widths)
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = (width, *self.channels[:-1])
        self.layer1 = _stage(inputs[0], widths[0], blocks=depths[0], stride=1)
        self.layer2 = _stage(inputs[1], widths[1], blocks=depths[1], stride=2)
        self.layer3 = _stage(inputs[2], widths[2], blocks=depths[2], stride=2)
        self.layer4 = _stage(inputs[3], widths[3], blocks=depths[3], stride=2)
        if num_classes:
            self.fc = nn.Linear(self.channels[-1], num_classes)
        self.num_classes = num_classes
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, image: Tensor, stages: Sequence[int] = (2, 3, 4)) -> list[list[Tensor]]:
        """The output of each block before its last ReLU; stages after the last requested one do not run.

        Args:
            image: (N, 3, H, W) float32.
            stages: Any of 1 to 4, ascending.

        Returns:
            One list per stage, shallow to deep: per block (N, channels[stage - 1], h, w) with h = ceil(H / 2 ** (stage
            + 1)), likewise w.

        Raises:
            InputError: The image is not of that shape, or there is no such stage.
        """
        if not stages or list(stages) != sorted(set(stages)) or stages[0] < 1 or stages[-1] > STAGES:
            raise InputError(f"stages are {tuple(stages)}; allowed: any of 1 to {STAGES}, ascending, each once")
        x = self._stem(image)
        pyramid: list[list[Tensor]] = []
        for number, stage in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)[: stages[-1]], start=1):
            sums: list[Tensor] = []
            for block in stage:
                sums.append(block(x))
                x = torch.relu(sums[-1])
            if number in stages:
                pyramid.append(sums)
        return pyramid

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_classes) logits, or (N, channels[3]) pooled features without a classifier."""
        last = self.features(image, stages=(STAGES,))[0][-1]
        pooled = torch.relu(last).mean((2, 3))
        result: Tensor = self.fc(pooled) if self.num_classes else pooled
        return result

    def _stem(self, image: Tensor) -> Tensor:
        if image.dim() != 4 or image.shape[1] != 3:
            raise InputError(f"image is {tuple(image.shape)}; allowed: (N, 3, H, W)")
        result: Tensor = self.maxpool(torch.relu(self.bn1(self.conv1(image))))
        return result


def resnet50(*, num_classes: int = 0, width: int = 64) -> ResNet:
    """ResNet-50: 25,557,032 parameters with 1000 classes, 23,508,032 without a classifier."""
    return ResNet((3, 4, 6, 3), width=width, num_classes=num_classes)


def resnet101(*, num_classes: int = 0, width: int = 64) -> ResNet:
    """ResNet-101: 44,549,160 parameters with 1000 classes, 42,500,160 without a classifier."""
    return ResNet((3, 4, 23, 3), width=width, num_classes=num_classes)


def load_imagenet_weights(backbone: ResNet, state_dict: Mapping[str, Tensor]) -> None:
    """Copy a published ImageNet state dict; its classifier ``fc.*`` is left out when the backbone has none.

    Args:
        backbone: Built with the depths of the checkpoint.
        state_dict: Tensors by torchvision's names.

    Raises:
        WeightsError: The tensors are not the backbone's; nothing was copied.
    """
    tensors = {
        name: tensor for name, tensor in state_dict.items() if backbone.num_classes or not name.startswith("fc.")
    }
    load_strict(
        backbone, tensors, source="the state dict", hint="Take the weights of the network of the same depth and width"
    )


def _stage(inputs: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride=stride)
    return nn.Sequential(first, *(Bottleneck(EXPANSION * width, width, stride=1) for _ in range(blocks - 1)))
