"""Residual U-Net: segmentation of slices, trained with bounding boxes only (``edgevis.losses.BoxTightnessLoss``).

Paper: Wang, Xia, "Bounding Box Tightness Prior for Weakly Supervised Image Segmentation", MICCAI 2021, section 3.2:
"a residual version of UNet", which it takes from Kervadec, Dolz, Wang, Granger, Ben Ayed, "Bounding Boxes for Weakly
Supervised Segmentation: Global Constraints Get Close to Full Supervision", MIDL 2020, and uses for prostates
(PROMISE12).
Provenance: our own code, after the structure of the network that both papers' authors released; parameter names are
ours.
Licence: this file, as the rest of edgevis. No weights ship: they must be trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional

from edgevis.models._point_rend import PointRefinedModel, deployment_of
from edgevis.models._segmentation import SIDE, deployment
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe import SegmentationRecipe

_WIDTHS = (32, 64, 128, 256)
_BRIDGE = 512
# Of the point head.
_POINT_WIDTH = 64

Activation = Callable[[], nn.Module]


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


class UNetConv(nn.Sequential):
    """A 3x3 convolution with bias, batch norm and, if given, an activation: (N, C, h, w) -> (N, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, activation: Activation | None) -> None:
        layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
        super().__init__(*layers, *([] if activation is None else [activation()]))


class ResidualUnit(nn.Module):
    """One convolution, three with a shortcut around them, one more: (N, C, h, w) -> (N, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, activation: Activation) -> None:
        super().__init__()
        self.first = UNetConv(inputs, outputs, activation)
        self.residual = nn.Sequential(
            UNetConv(outputs, outputs, activation),
            UNetConv(outputs, outputs, activation),
            UNetConv(outputs, outputs, None),
        )
        self.last = UNetConv(outputs, outputs, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        result: Tensor = self.last(x + self.residual(x))
        return result


class ResidualUNet(PointRefinedModel):
    """Four stages of 32, 64, 128 and 256 channels down, a bridge of 512, four stages up.

    Input: image (N, in_channels, side, side) float32; grey, or RGB, scaled to mean 0.5 and standard deviation 0.25.
    (The paper's code scales each image by its own mean and standard deviation, which no camera pipeline does.)
    Output of :meth:`segment` and ``forward``: logits (N, classes, side, side) float32; the runtime applies the sigmoid,
    and so must training before ``BoxTightnessLoss``.

    On the way up the encoder's map is averaged with the enlarged one, not concatenated.

    Args:
        in_channels: 1 for grey images, 3 for RGB.
        classes: Number of maps, one per class.
        side: Side of the square images, a multiple of 16.
        points: With 1 or more the last stage up is left out, and of its 64-channel input's logits so many of the most
            uncertain pixels are refined at the image's size, as PointRend does (:mod:`edgevis.layers.point_rend`).

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(self, *, in_channels: int = 1, classes: int = 1, side: int = SIDE, points: int = 0) -> None:
        super().__init__(
            in_channels=in_channels,
            classes=classes,
            side=side,
            multiple=2 ** len(_WIDTHS),
            points=points,
            stride=2,
            fine=_WIDTHS[1],
            width=_POINT_WIDTH,
        )
        inputs = (in_channels, *_WIDTHS[:-1])
        self.down = nn.ModuleList(ResidualUnit(i, o, _leaky) for i, o in zip(inputs, _WIDTHS, strict=True))
        self.bridge = ResidualUnit(_WIDTHS[-1], _BRIDGE, _leaky)
        widths = _WIDTHS[:0:-1] if points else _WIDTHS[::-1]
        self.enlarge = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(i, o, 3, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(o), nn.ReLU()
            )
            for i, o in zip((_BRIDGE, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(ResidualUnit(width, width, nn.ReLU) for width in widths)
        self.output = nn.Conv2d(widths[-1], classes, 3, padding=1)
        for module in self.modules():
            if type(module) is nn.Conv2d:
                nn.init.normal_(module.weight, std=math.sqrt(2 / (9 * module.out_channels)))

    def forward(self, image: Tensor) -> Tensor:
        """The same as :meth:`segment`.

        Raises:
            InputError: The image's channels or sides do not fit.
        """
        if self.points:
            return super().forward(image)
        self.check_image(image)
        logits: Tensor = self.output(self._decoded(image))
        return logits

    def coarse_and_fine(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at half the sides, and the decoder's maps that they are made of."""
        x = self._decoded(image)
        return self.output(x), x

    def _decoded(self, image: Tensor) -> Tensor:
        """The decoder's last maps."""
        x, maps = image, []
        for unit in self.down:
            maps.append(unit(x))
            x = functional.max_pool2d(maps[-1], 2)
        x = self.bridge(x)
        # With points there is one stage less, and the finest map is left over.
        for enlarge, unit, skip in zip(self.enlarge, self.up, reversed(maps), strict=not self.points):
            x = unit((enlarge(x) + skip) / 2)
        decoded: Tensor = x
        return decoded


DEPLOYMENT = deployment()

# Section 3.2, PROMISE12; the number of epochs is not stated. Its best row: softmax, alpha 6, angles -40 to 40 by 20.
PAPER = SegmentationRecipe(
    supervision="boxes", epochs=200, optimizer="adam", learning_rate=1e-4, adam_beta2=0.99, batch=16, flip=True
)
SMALL = replace(PAPER, epochs=20, learning_rate=5e-4, schedule="cosine", warm_up_epochs=1, batch=8, clip_norm=1.0)

ENTRIES = (
    ModelEntry(
        "residual-unet",
        ResidualUNet,
        DEPLOYMENT,
        "Wang, Xia: Bounding Box Tightness Prior for Weakly Supervised Image Segmentation, MICCAI 2021",
        "Apache-2.0",
        19_644_961,
        deploy=deployment_of,
        recipes={"paper": PAPER, "small": SMALL},
    ),
)
