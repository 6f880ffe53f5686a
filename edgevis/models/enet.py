"""ENet, width 16: a small segmentation network, trained with bounding boxes only (``edgevis.losses.BoxTightnessLoss``).

Paper: Paszke, Chaurasia, Kim, Culurciello, "ENet: A Deep Neural Network Architecture for Real-Time Semantic
Segmentation", 2016. Wang, Xia, "Bounding Box Tightness Prior for Weakly Supervised Image Segmentation", MICCAI 2021,
section 3.2, use it for lesions (ATLAS), in the variant of Kervadec, Dolz, Wang, Granger, Ben Ayed, MIDL 2020: encoder
maps are concatenated in the decoder, and bottlenecks keep their batch norms and dropout.
Provenance: our own code, after the structure of the network that both papers' authors released; parameter names are
ours. Theirs has 459,530 parameters, of which 1,300 never take part: two 3x3 convolutions for outputs at lower
resolutions (1,153 and 145) and the slope after each of the two enlarging bottlenecks. They are left out: 458,230.
Licence: this file, as the rest of edgevis. Weights ship for colour images (``in_channels=3``), which find cell nuclei:
``edgevis/weights/enet.json`` says from which pictures they learned, by boxes alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.layers.max_unpooling import Places, max_pool_with_places, max_unpool
from edgevis.models._point_rend import PointRefinedModel, deployment_of
from edgevis.models._segmentation import SIDE, deployment
from edgevis.models.entry import ModelEntry
from edgevis.models.residual_unet import PAPER, SMALL
from runtime.bundle.spec import Deployment

_WIDTH = 16
# Of the point head.
_POINT_WIDTH = 64
# The factor by which a bottleneck narrows.
_RATIO = 4
# What counts as equal in a pooling window, see max_pool_with_places. With 0 the places in flat parts of an image, as
# around a body in a scan, are decided by rounding. Measured with random weights: PyTorch at batch 1 and at batch 20 was
# 0.4 of the largest logit apart, on half of 20 images, and the least cosine of OpenVINO's BF16 to FP32 on 24 pictures
# was 0.83. With 1/8 ONNX Runtime and OpenVINO in FP32 are 1e-6 from PyTorch on 128 pictures, and that cosine is 0.998.
# Trained on drawn ellipses for 150 steps, three seeds, the overlap is the same: IoU 0.97, 0.97, 0.96 with 0, and
# 0.96, 0.97, 0.96 with 1/8.
_TOLERANCE = 1 / 8
# A pixel at the edge of the tolerance may still be decided otherwise, which its neighbourhood shows.
_FLIPS = 0.005


class ConvBNPReLU(nn.Sequential):
    """Convolutions one after the other with the size of a map kept, batch norm, PReLU with one slope."""

    def __init__(self, *convolutions: nn.Conv2d) -> None:
        super().__init__(*convolutions, nn.BatchNorm2d(convolutions[-1].out_channels), nn.PReLU())


def _pointwise(inputs: int, outputs: int) -> ConvBNPReLU:
    return ConvBNPReLU(nn.Conv2d(inputs, outputs, 1))


def _square(inputs: int, outputs: int, *, dilation: int = 1) -> ConvBNPReLU:
    return ConvBNPReLU(nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation))


def _asymmetric(channels: int) -> ConvBNPReLU:
    """5x1, then 1x5: the reach of a 5x5 convolution for two fifths of its parameters."""
    return ConvBNPReLU(
        nn.Conv2d(channels, channels, (5, 1), padding=(2, 0)), nn.Conv2d(channels, channels, (1, 5), padding=(0, 2))
    )


class ENetBlock(nn.Module):
    """Narrow, convolve, widen, add: (N, inputs, h, w) -> (N, outputs, h, w).

    Args:
        inputs, outputs: Channels.
        middle: The convolution between, on inputs / 4 channels.
        dropout: Of the branch, while training.
        shortcut: What brings the input to ``outputs`` channels, if it has others.
    """

    def __init__(
        self, inputs: int, outputs: int, *, middle: nn.Module, dropout: float, shortcut: nn.Module | None = None
    ) -> None:
        super().__init__()
        narrow = inputs // _RATIO
        self.branch = nn.Sequential(
            _pointwise(inputs, narrow), middle, _pointwise(narrow, outputs), nn.Dropout(dropout)
        )
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.shortcut(x) + self.branch(x))
        return result


class Shrink(nn.Module):
    """Halve the map and widen it: (N, inputs, 2 h, 2 w) -> (N, outputs, h, w), and the places of its input's maxima."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        narrow = inputs // _RATIO
        self.branch = nn.Sequential(
            ConvBNPReLU(nn.Conv2d(inputs, narrow, 2, stride=2)),
            _square(narrow, narrow),
            _pointwise(narrow, outputs),
            nn.Dropout(0.01),
        )
        self.activation = nn.PReLU()
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> tuple[Tensor, Places]:
        pooled, places = max_pool_with_places(x, tolerance=_TOLERANCE)
        # The channels that the input has not are zeros.
        pooled = functional.pad(pooled, (0, 0, 0, 0, 0, self.added))
        return self.activation(pooled + self.branch(x)), places


def _enlarging(inputs: int, outputs: int) -> nn.Sequential:
    """The branch of a bottleneck in the decoder, which takes unpooled and encoder's maps together."""
    narrow = inputs // _RATIO
    return nn.Sequential(
        _square(inputs, narrow), _square(narrow, narrow), _pointwise(narrow, outputs), nn.Dropout(0.01)
    )


def _regular(channels: int, *, dropout: float) -> ENetBlock:
    narrow = channels // _RATIO
    return ENetBlock(channels, channels, middle=_square(narrow, narrow), dropout=dropout)


def _dilated(channels: int, dilation: int) -> ENetBlock:
    narrow = channels // _RATIO
    return ENetBlock(channels, channels, middle=_square(narrow, narrow, dilation=dilation), dropout=0.01)


def _section(channels: int) -> list[nn.Module]:
    """Seven bottlenecks: regular, dilated by 2, asymmetric, dilated by 4, regular, dilated by 8, asymmetric."""
    return [
        _regular(channels, dropout=0.1),
        _dilated(channels, 2),
        ENetBlock(channels, channels, middle=_asymmetric(channels // _RATIO), dropout=0.1),
        _dilated(channels, 4),
        _regular(channels, dropout=0.1),
        _dilated(channels, 8),
        ENetBlock(channels, channels, middle=_asymmetric(channels // _RATIO), dropout=0.1),
    ]


class ENet(PointRefinedModel):
    """An encoder that halves the map three times, to 64 and 128 channels, and a decoder that unpools.

    Input: image (N, in_channels, side, side) float32; grey, or RGB, scaled to mean 0.5 and standard deviation 0.25.
    (The paper's code scales each image by its own mean and standard deviation, which no camera pipeline does.)
    Output of :meth:`segment` and ``forward``: logits (N, classes, side, side) float32; the runtime applies the sigmoid,
    and so must training before ``BoxTightnessLoss``.

    Where a window's maximum was is decided with a tolerance of 1/8: unlike in the released code nearly equal pixels
    count as equal, and the first one is taken, so that rounding hardly ever decides.

    Args:
        in_channels: 1 for grey images, 3 for RGB.
        classes: Number of maps, one per class.
        side: Side of the square images, a multiple of 8.
        points: With 1 or more the last convolutions work at half the image's sides, and so many of the most uncertain
            pixels are refined at its full size, as PointRend does (:mod:`edgevis.layers.point_rend`).

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(self, *, in_channels: int = 1, classes: int = 1, side: int = SIDE, points: int = 0) -> None:
        super().__init__(
            in_channels=in_channels,
            classes=classes,
            side=side,
            multiple=8,
            points=points,
            stride=2,
            fine=2 * _WIDTH,
            width=_POINT_WIDTH,
        )
        middle, wide = 4 * _WIDTH, 8 * _WIDTH
        # 16 channels together with the pooled image: 15 and 1 for grey images, 13 and 3, as the original has, for RGB.
        self.initial = nn.Conv2d(in_channels, _WIDTH - in_channels, 3, stride=2, padding=1)
        self.shrink1 = Shrink(_WIDTH, middle)
        self.stage1 = nn.Sequential(*(_regular(middle, dropout=0.01) for _ in range(4)))
        self.shrink2 = Shrink(middle, wide)
        self.stage2 = nn.Sequential(*_section(wide), _dilated(wide, 16))
        narrow = wide // _RATIO
        last = ENetBlock(
            wide,
            middle,
            middle=_square(narrow, narrow, dilation=16),
            dropout=0.01,
            shortcut=nn.Conv2d(wide, middle, 3, padding=1),
        )
        self.stage3 = nn.Sequential(*_section(wide), last)
        self.enlarge1 = _enlarging(2 * middle, middle)
        self.activation1 = nn.PReLU()
        thin = middle // _RATIO
        self.stage4 = nn.Sequential(
            _regular(middle, dropout=0.1),
            ENetBlock(middle, _WIDTH, middle=_square(thin, thin), dropout=0.1, shortcut=_pointwise(middle, _WIDTH)),
        )
        self.enlarge2 = nn.Sequential(_enlarging(2 * _WIDTH, _WIDTH), _regular(_WIDTH, dropout=0.1))
        self.activation2 = nn.PReLU()
        self.last = nn.Sequential(*(ConvBNPReLU(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1, bias=False)) for _ in range(2)))
        self.output = nn.Conv2d(_WIDTH, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """The same as :meth:`segment`.

        Raises:
            InputError: The image's channels or sides do not fit.
        """
        if self.points:
            return super().forward(image)
        self.check_image(image)
        x, _ = self._decoded(image)
        logits: Tensor = self.output(self.last(functional.interpolate(x, scale_factor=2.0, mode="nearest")))
        return logits

    def coarse_and_fine(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at half the sides; the decoder's and the first maps together."""
        x, initial = self._decoded(image)
        return self.output(self.last(x)), torch.cat([x, initial], dim=1)

    def _decoded(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's last maps and the encoder's first, both (N, 16, H/2, W/2)."""
        initial = torch.cat([self.initial(image), functional.max_pool2d(image, 2)], dim=1)
        x, places1 = self.shrink1(initial)
        stage1 = self.stage1(x)
        x, places2 = self.shrink2(stage1)
        x = self.stage3(self.stage2(x))
        x = max_unpool(x, places2)
        x = self.stage4(self.activation1(x + self.enlarge1(torch.cat([x, stage1], dim=1))))
        x = max_unpool(x, places1)
        return self.activation2(x + self.enlarge2(torch.cat([x, initial], dim=1))), initial


def _deploy(module: nn.Module) -> Deployment:
    return deployment_of(module, max_flipped=_FLIPS)


DEPLOYMENT = deployment(max_flipped=_FLIPS)

# Section 3.2, ATLAS; the number of epochs is not stated.
_PAPER = replace(PAPER, learning_rate=5e-4, batch=80, flip=False)

ENTRIES = (
    ModelEntry(
        "enet",
        ENet,
        DEPLOYMENT,
        "Paszke, Chaurasia, Kim, Culurciello: ENet, 2016, in the variant of Wang, Xia: Bounding Box Tightness Prior "
        "for Weakly Supervised Image Segmentation, MICCAI 2021",
        "Apache-2.0",
        458_230,
        weights="enet.safetensors",
        deploy=_deploy,
        added=("point_head.",),
        recipes={"paper": _PAPER, "small": SMALL},
    ),
)
