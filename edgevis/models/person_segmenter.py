"""Person segmenter: a mask of the persons in a photograph or in a detector's crop, learned from boxes alone.

No paper's model: EfficientNet-Lite0 (Tan, Le, ICML 2019, and tensorflow/tpu, 2020) up to a sixteenth of the image's
sides with published ImageNet weights, which stay as they are, and a decoder that joins its maps as U-Net does
(Ronneberger, Fischer, Brox, MICCAI 2015). With ``enet``, which begins at random, a few hundred photographs teach what
these photographs show; maps that know ImageNet carry over to other ones.
Learned with the box-tightness loss of Wang, Xia, MICCAI 2021 (:class:`edgevis.losses.BoxTightnessLoss`).
Provenance: our own code; the backbone's parameters bear timm's names (``tf_efficientnet_lite0``).
Licence: this file, as the rest of edgevis. Weights ship: ``edgevis/weights/person-segmenter.json`` says from which
pictures they learned, by boxes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.layers.efficientnet import LITE_MEAN, LITE_STD, STAGE_CHANNELS, EfficientNetTrunk
from edgevis.layers.mbconv import maps_after
from edgevis.models import _segmentation as segmentation
from edgevis.models._segmentation import SegmentationModel
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe import SegmentationRecipe
from runtime.bundle.spec import Deployment
from runtime.common.json_data import to_json
from runtime.errors import ModelError
from runtime.tasks.segment import SegmentationSettings

SIDE = 192

# Of the backbone's stages those whose maps the decoder joins: at 1/2, 1/4, 1/8 and 1/16 of the image's sides.
_PLACES = (0, 1, 2, 4)
_CHANNELS = tuple(STAGE_CHANNELS[place] for place in _PLACES)
# The decoder's channels at these scales.
_WIDTHS = (24, 32, 48, 64)
_DILATIONS = (2, 4, 1)


class LiteTrunk(EfficientNetTrunk):
    """EfficientNet-Lite0 up to its 112-channel stage. Input: (N, 3, H, W) float32 RGB, (x - 127) / 128 of 0..255."""

    def __init__(self) -> None:
        super().__init__(lite=True, tensorflow=True)
        self.blocks = nn.Sequential(*list(self.blocks)[: _PLACES[-1] + 1])

    def maps(self, image: Tensor) -> tuple[Tensor, ...]:
        """Maps of 16, 24, 40 and 112 channels at 1/2, 1/4, 1/8 and 1/16 of the image's sides."""
        return maps_after(self.blocks, self.stem(image), _PLACES)


class SkipDecoder(nn.Module):
    """Maps of several scales to logits at the finest of them.

    Args:
        channels: Of the maps, the finest first; each scale is twice the next one.
        widths: The decoder's channels at each scale.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in channels)
        self.first = _block(channels[-1], widths[-1], kernel=1)
        # What the whole image shows, for each place of it.
        self.whole = nn.Conv2d(widths[-1], widths[-1], 1)
        self.residual = nn.ModuleList(_block(widths[-1], widths[-1], dilation=dilation) for dilation in _DILATIONS)
        self.join = nn.ModuleList(
            _block(widths[place + 1] + channels[place], widths[place]) for place in range(len(channels) - 1)
        )
        self.output = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(N, channels, h, w) of each scale -> logits (N, 1, h, w) at the finest."""
        normed = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        x = self.first(normed[-1])
        x = x + self.whole(x.mean((2, 3), keepdim=True))
        for block in self.residual:
            x = x + block(x)
        for join, skip in zip(reversed(self.join), reversed(normed[:-1]), strict=True):
            x = join(torch.cat([_doubled(x), skip], 1))
        logits: Tensor = self.output(x)
        return logits


class PersonSegmenter(SegmentationModel):
    """EfficientNet-Lite0's maps and a :class:`SkipDecoder`.

    Input: image (N, 3, side, side) float32, RGB, (x - 127) / 128 of 0..255. Output of :meth:`segment` and ``forward``:
    logits (N, 1, side, side) float32, of a person.

    Args:
        side: Side of the square images, a multiple of 16; no parameter depends on it.

    Raises:
        ModelError: The option is not as described.
    """

    def __init__(self, *, side: int = SIDE) -> None:
        super().__init__(in_channels=3, classes=1, side=side, multiple=16)
        self.backbone = LiteTrunk()
        self.decoder = SkipDecoder(_CHANNELS, _WIDTHS)

    def forward(self, image: Tensor) -> Tensor:
        """The same as :meth:`segment`.

        Raises:
            InputError: The image's channels or sides do not fit.
        """
        self.check_image(image)
        logits: Tensor = self.decoder(self.backbone.maps(image))
        return _doubled(logits)


def _block(inputs: int, outputs: int, *, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _deployment(side: int) -> Deployment:
    declared = segmentation.deployment(in_channels=3, side=side)
    return replace(
        declared,
        preprocess=replace(declared.preprocess, mean=LITE_MEAN, std=LITE_STD),
        postprocess=to_json(SegmentationSettings(("person",))),
    )


def _deploy(module: nn.Module) -> Deployment:
    """The deployment of a segmenter that was built with any options."""
    if not isinstance(module, PersonSegmenter):
        raise ModelError(f"a {type(module).__name__} is no person segmenter")
    return _deployment(module.side)


DEPLOYMENT = _deployment(SIDE)

# Of a few hundred photographs the backbone would learn these alone. Persons are not mirrored upside down, as ``flip``
# does: ``benchmarks.person_boxes`` mirrors its pictures.
SMALL = SegmentationRecipe(
    supervision="boxes",
    epochs=6,
    optimizer="adamw",
    learning_rate=2e-3,
    weight_decay=1e-2,
    decay_vectors=False,
    schedule="cosine",
    warm_up_epochs=1,
    clip_norm=1.0,
    validate_every=2,
    frozen=("backbone",),
    batch=8,
    flip=False,
)

ENTRIES = (
    ModelEntry(
        "person-segmenter",
        PersonSegmenter,
        DEPLOYMENT,
        "Wang, Xia: Bounding Box Tightness Prior for Weakly Supervised Image Segmentation, MICCAI 2021 (the loss)",
        "Apache-2.0",
        900_041,
        weights="person-segmenter.safetensors",
        deploy=_deploy,
        recipes={"small": SMALL},
    ),
)
