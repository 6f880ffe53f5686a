"""PointRend, semantic, for small devices: a feature pyramid, a coarse mask, and refined borders at the image's size.

Papers: Kirillov, Wu, He, Girshick, "PointRend: Image Segmentation as Rendering", CVPR 2020, section 5, which refines
the semantic feature pyramid of Kirillov, Girshick, He, Dollár, "Panoptic Feature Pyramid Networks", CVPR 2019. Theirs
has 256 channels on a ResNet-101; here are 128 and 64 on RegNetX-400MF or MobileNetV2.
Provenance: our own code; parameters of the pyramid and of both heads bear detectron2's names, those of the backbones
timm's.
Licence: this file, as the rest of edgevis. No weights ship: they must be trained.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from edgevis.layers import imagenet
from edgevis.layers.fpn import FPN, SemanticFPNHead
from edgevis.layers.mbconv import initialise
from edgevis.layers.mobilenetv2 import MobileNetV2Trunk
from edgevis.layers.regnet import DESIGNS, RegNet
from edgevis.models import _segmentation as segmentation
from edgevis.models._point_rend import FLOAT32_OUTPUTS, POINT_REND_FLIPS, PointRefinedModel, deployment_of
from edgevis.models.allowed import one_of
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe import SegmentationRecipe
from runtime.bundle.spec import Deployment
from runtime.errors import ModelError

SIDE, POINTS, BACKBONE = 512, 2048, "regnetx_004"
BACKBONES = ("mobilenetv2", *DESIGNS)

_CHANNELS, _COARSE_WIDTH, _POINT_WIDTH = 128, 64, 128
# 1/4 of the image's sides.
_STRIDE = 4


class PointRend(PointRefinedModel):
    """A backbone's four maps, a pyramid, coarse logits at 1/4 of the sides, two doublings with refined points.

    Input: image (N, 3, side, side) float32 RGB, ImageNet mean and standard deviation, with MobileNetV2 -1..1.
    Output of :meth:`segment` and ``forward``: logits (N, classes, side, side) float32. In training the loss is that of
    the coarse logits, enlarged, and of the logits at ``points`` points of each image.

    Args:
        classes: Number of maps, one per class. Of several the uncertainty is that between the two largest.
        side: Side of the square images, a multiple of 32, up to 4,096; no parameter depends on it.
        points: Refined at each doubling, 1 to 3,840 and at most a quarter of the image's pixels; 0 enlarges the coarse
            logits bilinearly instead.
        backbone: ``mobilenetv2``, with TensorFlow's padding, as its published weights need, or a RegNet, one of
            :data:`edgevis.layers.regnet.DESIGNS`.

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(self, *, classes: int = 1, side: int = SIDE, points: int = POINTS, backbone: str = BACKBONE) -> None:
        one_of(*BACKBONES).require("backbone", backbone)
        super().__init__(
            in_channels=3,
            classes=classes,
            side=side,
            multiple=32,
            points=points,
            stride=_STRIDE,
            fine=_CHANNELS,
            width=_POINT_WIDTH,
        )
        self.backbone: RegNet | MobileNetV2Trunk
        if backbone == "mobilenetv2":
            self.backbone = MobileNetV2Trunk(same=True)
            initialise(self.backbone)
            channels: tuple[int, ...] = self.backbone.map_channels
            self.mean, self.std = (0.5,) * 3, (0.5,) * 3
        else:
            self.backbone = RegNet(backbone)
            channels = self.backbone.channels
            self.mean, self.std = imagenet.MEAN, imagenet.STD
        self.fpn = FPN(channels, channels=_CHANNELS)
        self.coarse_sem_seg_head = SemanticFPNHead(_CHANNELS, width=_COARSE_WIDTH, classes=classes)

    def coarse_and_fine(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The logits at 1/4 of the sides, and the pyramid's finest map."""
        maps = self.fpn(self.backbone.maps(image))
        return self.coarse_sem_seg_head(maps), maps[0]


def _normalised(deployment: Deployment, mean: tuple[float, ...], std: tuple[float, ...]) -> Deployment:
    return replace(deployment, preprocess=replace(deployment.preprocess, mean=mean, std=std))


def _deploy(module: nn.Module) -> Deployment:
    """The deployment of a model that was built with any options."""
    if not isinstance(module, PointRend):
        raise ModelError(f"a {type(module).__name__} is no PointRend")
    return _normalised(deployment_of(module), module.mean, module.std)


DEPLOYMENT = _normalised(
    segmentation.deployment(in_channels=3, side=SIDE, max_flipped=POINT_REND_FLIPS, float32_outputs=FLOAT32_OUTPUTS),
    imagenet.MEAN,
    imagenet.STD,
)

# Section 5: Cityscapes, 65,000 steps of 32 crops.
PAPER = SegmentationRecipe(
    supervision="masks",
    epochs=650,
    steps_per_epoch=100,
    optimizer="sgd",
    learning_rate=0.01,
    weight_decay=1e-4,
    schedule="step",
    milestones=(400, 550),
    batch=32,
)
SMALL = replace(
    PAPER,
    epochs=20,
    steps_per_epoch=0,
    optimizer="adamw",
    learning_rate=5e-4,
    weight_decay=1e-2,
    decay_vectors=False,
    schedule="cosine",
    milestones=(),
    warm_up_epochs=1,
    clip_norm=1.0,
    batch=8,
)

ENTRIES = (
    ModelEntry(
        "pointrend",
        PointRend,
        DEPLOYMENT,
        "Kirillov, Wu, He, Girshick: PointRend: Image Segmentation as Rendering, CVPR 2020",
        "Apache-2.0",
        5_901_538,
        deploy=_deploy,
        recipes={"paper": PAPER, "small": SMALL},
    ),
)
