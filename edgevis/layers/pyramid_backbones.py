"""The backbones of detectors by name: three maps, at 1/8, 1/16 and 1/32 of the image's sides.

Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

from typing import TypeAlias

from edgevis.layers.efficientnet import EfficientNetTrunk
from edgevis.layers.ghostnet import GhostNetTrunk
from edgevis.layers.imagenet import MEAN, STD
from edgevis.layers.mbconv import initialise
from edgevis.layers.mobilenetv2 import MobileNetV2Trunk
from edgevis.layers.regnet import DESIGNS, RegNetTrunk
from runtime.bundle.spec import Preprocess

Backbone: TypeAlias = EfficientNetTrunk | MobileNetV2Trunk | GhostNetTrunk | RegNetTrunk

BACKBONES = ("efficientnet-b0", "efficientnet-lite0", "mobilenetv2", "ghostnet", *DESIGNS)

# Their input is -1..1.
_SIGNED = ("efficientnet-lite0", "mobilenetv2")


def pyramid_backbone(name: str, *, tensorflow: bool) -> Backbone:
    """A backbone with random weights; its ``pyramid`` gives the maps, ``channels`` their channels.

    Args:
        name: One of :data:`BACKBONES`.
        tensorflow: EfficientNet-B0 and MobileNetV2 pad as weights that TensorFlow made need; EfficientNet-Lite0 always
            does.
    """
    if name in DESIGNS:
        return RegNetTrunk(name)
    if name == "ghostnet":
        return GhostNetTrunk()
    lite = name == "efficientnet-lite0"
    trunk: MobileNetV2Trunk | EfficientNetTrunk = (
        MobileNetV2Trunk(same=tensorflow)
        if name == "mobilenetv2"
        else EfficientNetTrunk(lite=lite, tensorflow=lite or tensorflow)
    )
    initialise(trunk)  # those above do so themselves
    return trunk


def pyramid_preprocess(name: str, *, height: int, width: int) -> Preprocess:
    """The preprocessing that a backbone's published weights need, the image at the top left of its input."""
    signed = name in _SIGNED
    return Preprocess(
        height=height,
        width=width,
        color="RGB",
        mean=(0.5, 0.5, 0.5) if signed else MEAN,
        std=(0.5, 0.5, 0.5) if signed else STD,
        fit="letterbox",
        align="top-left",
        pad_value=114,
    )
