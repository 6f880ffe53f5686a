"""EfficientNet-b0 and EfficientNet-Lite0: classifiers, and backbones that give maps of three scales.

Papers: Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; Lite0 is the
same authors' form of it for integer hardware, without squeeze-and-excitation and with ReLU6 (2020, tensorflow/tpu).
Provenance: our own code; parameters bear the names of timm's ``efficientnet_b0``, ``tf_efficientnet_b0`` and
``tf_efficientnet_lite0`` (huggingface/pytorch-image-models, Apache-2.0), so the state dicts published there load
strictly.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgevis.layers.mbconv import MobileBackbone, MobileTrunk, convolution, initialise, maps_after, mobile_stages

LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Of the published weights of EfficientNet-Lite0, for images 0..1: (x - 127) / 128 of 0..255, as TensorFlow has it."""

HEAD_CHANNELS = 1280
STAGE_CHANNELS = (16, 24, 40, 80, 112, 192, 320)

_STEM = 32
# Per stage after the first: channels, blocks, kernel, stride of the first block.
_STAGES = ((24, 2, 3, 2), (40, 2, 5, 2), (80, 3, 3, 2), (112, 3, 5, 1), (192, 4, 5, 2), (320, 1, 3, 1))
_STRIDED_192 = 192
# The last stages at 1/8, 1/16 and 1/32 of the image's sides.
_OF_PYRAMID = (2, 4, 6)
# Which of the stages are a backbone's stages 1 to 4, at a 4th, an 8th, a 16th and a 32nd of the image's sides: of each
# scale the last one that has several blocks of one width.
_OF_BACKBONE = (1, 2, 4, 5)
_TENSORFLOW_EPS = 1e-3


class EfficientNetTrunk(MobileTrunk):
    """The stem and the stages, without the head. Input: (N, 3, H, W) float32 RGB.

    Args:
        lite: No squeeze-and-excitation and ReLU6 instead of SiLU.
        tensorflow: Padding and the batch norms' eps as in weights that TensorFlow made; sides must be multiples of 32.
        last_stride: Stride of the 192-channel stage: 2 as published (maps at 1/32), or 1 (the last ones at 1/16).

    Attributes:
        channels: Of the maps of :meth:`pyramid`.
    """

    channels = tuple(STAGE_CHANNELS[place] for place in _OF_PYRAMID)

    def __init__(self, *, lite: bool = False, tensorflow: bool = False, last_stride: int = 2) -> None:
        super().__init__()
        self._activation = nn.ReLU6 if lite else nn.SiLU
        self.conv_stem = convolution(3, _STEM, 3, stride=2, same=tensorflow)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.act1 = self._activation()
        rows = ((*row[:3], last_stride if row[0] == _STRIDED_192 else row[3]) for row in _STAGES)
        self.blocks = mobile_stages(
            _STEM, STAGE_CHANNELS[0], rows, activation=self._activation, excite=not lite, same=tensorflow
        )
        if tensorflow:
            _set_tensorflow_eps(self)

    def pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> maps (N, 40, H/8, W/8), (N, 112, H/16, W/16), (N, 320, H/32, W/32)."""
        return maps_after(self.blocks, self.stem(image), _OF_PYRAMID)


class EfficientNetLite0Backbone(MobileBackbone, EfficientNetTrunk):
    """EfficientNet-Lite0 for few-shot segmentation, see :class:`edgevis.layers.mbconv.MobileBackbone`.

    Input: (x - 127) / 128.

    Attributes:
        depths: Blocks of stages 1 to 4.
        channels: Channels that each stage puts out.
        mean, std: Of each channel of its input, 0..1.
    """

    places = _OF_BACKBONE
    depths = tuple(_STAGES[place - 1][1] for place in _OF_BACKBONE)
    channels = tuple(_STAGES[place - 1][0] for place in _OF_BACKBONE)
    mean, std = LITE_MEAN, LITE_STD

    def __init__(self) -> None:
        super().__init__(lite=True)
        self.blocks = nn.Sequential(*list(self.blocks)[: _OF_BACKBONE[-1] + 1])
        _set_tensorflow_eps(self)
        initialise(self)


class EfficientNetB0(EfficientNetTrunk):
    """EfficientNet-b0. Input: (N, 3, H, W) float32 RGB, ImageNet mean and standard deviation.

    Use it whole (``forward``: logits), or run :meth:`stem`, each of ``blocks`` and :meth:`head` for the maps between.

    Args:
        num_classes: Classes of the linear classifier; 0 leaves it out, and ``forward`` gives the pooled (N, 1280).
        lite, tensorflow, last_stride: See :class:`EfficientNetTrunk`. EfficientNet-Lite0 is ``lite`` and
            ``tensorflow``; its input has mean = std = 0.5.
    """

    def __init__(
        self, *, num_classes: int = 1000, lite: bool = False, tensorflow: bool = False, last_stride: int = 2
    ) -> None:
        super().__init__(lite=lite, tensorflow=tensorflow, last_stride=last_stride)
        self.conv_head = nn.Conv2d(STAGE_CHANNELS[-1], HEAD_CHANNELS, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD_CHANNELS)
        self.act2 = self._activation()
        self.classifier = nn.Linear(HEAD_CHANNELS, num_classes) if num_classes else nn.Identity()
        if tensorflow:
            _set_tensorflow_eps(self)
        initialise(self)

    def head(self, x: Tensor) -> Tensor:
        """The map after the last stage, (N, 320, h, w) -> (N, 1280, h, w)."""
        result: Tensor = self.act2(self.bn2(self.conv_head(x)))
        return result

    def pooled_head(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1280), the mean of the head's map."""
        return self.head(self.blocks(self.stem(image))).mean((2, 3))

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_classes) logits, or (N, 1280) without a classifier."""
        result: Tensor = self.classifier(self.pooled_head(image))
        return result


def _set_tensorflow_eps(module: nn.Module) -> None:
    """The eps of batch norms that TensorFlow trained."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = _TENSORFLOW_EPS
