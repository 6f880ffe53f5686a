"""PolarMask: instance segmentation by outlines of 36 rays, at an edge device's size.

Paper: Xie, Sun, Song, Wang, Liu, Liang, Shen, Luo, "PolarMask: Single Shot Instance Segmentation With Polar
Representation", CVPR 2020. The paper's network has a ResNet, 256 channels and towers of four convolutions; this one has
a mobile backbone, 128 channels and towers of two.
Provenance: our own code; neck and head bear the names of the authors' code (xieenze/PolarMask, Apache-2.0), backbones
those of timm. No weights ship.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevis.data.polar_targets import RAYS
from edgevis.layers.polar_code import STRIDES, decode_distances, decode_polygons, point_count, polar_points
from edgevis.layers.polar_head import PolarHead, PolarMaps
from edgevis.layers.polar_neck import PolarNeck
from edgevis.layers.pyramid_backbones import BACKBONES, pyramid_backbone, pyramid_preprocess
from edgevis.models._detection import COCO_LABELS, MAX_CLASSES, instance_deployment, labels_of
from edgevis.models._image import require_image
from edgevis.models.allowed import TEXT, one_of, whole
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe_detection import InstanceRecipe
from runtime.bundle.spec import MAX_SIDE, Deployment
from runtime.errors import ModelError

SIDE = 512
MULTIPLE = STRIDES[-1]
_BACKBONE = "mobilenetv2"
_CHANNELS, _TOWER, _GROUPS = 128, 2, 32
_MAX_CHANNELS, _MAX_TOWER = 512, 8
# Inference multiplies a class's probability by the centreness plus this; by 1.5 a score is 0..1 again.
_RAISED = 0.5


class PolarMask(nn.Module):
    """PolarMask.

    Input: image (N, 3, height, width) float32 RGB: -1..1 with MobileNetV2 and EfficientNet-Lite0, ImageNet's mean and
    standard deviation with the other backbones.
    Output of :meth:`outline`: scores, boxes and polygons of P points, in the order of
    :func:`edgevis.layers.polar_code.polar_points`: 5,456 at 512 x 512.

    Args:
        num_classes: Number of classes.
        height, width: Size of the images in pixels, multiples of 128. It changes no parameter.
        backbone: One of :data:`edgevis.layers.pyramid_backbones.BACKBONES`, with the padding that published weights
            of TensorFlow's need.
        channels: Of neck and head, a multiple of 32; the paper has 256.
        tower: The convolutions of each tower; the paper has 4.
        labels: Names of the classes, separated by commas; see :func:`edgevis.models._detection.labels_of`.

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(
        self,
        *,
        num_classes: int = len(COCO_LABELS),
        height: int = SIDE,
        width: int = SIDE,
        backbone: str = _BACKBONE,
        channels: int = _CHANNELS,
        tower: int = _TOWER,
        labels: str = "",
    ) -> None:
        super().__init__()
        whole(1, MAX_CLASSES).require("num_classes", num_classes)
        side = whole(MULTIPLE, MAX_SIDE, multiple=MULTIPLE)
        side.require("height", height)
        side.require("width", width)
        one_of(*BACKBONES).require("backbone", backbone)
        whole(_GROUPS, _MAX_CHANNELS, multiple=_GROUPS).require("channels", channels)
        whole(1, _MAX_TOWER).require("tower", tower)
        TEXT.require("labels", labels)
        self.labels = labels_of(num_classes, labels)
        self.height, self.width, self.backbone_name = height, width, backbone
        self.backbone = pyramid_backbone(backbone, tensorflow=True)
        self.neck = PolarNeck(self.backbone.channels, channels=channels)
        self.bbox_head = PolarHead(channels, num_classes, repeats=tower, groups=_GROUPS)

    def heads(self, image: Tensor) -> PolarMaps:
        """The raw maps of five levels, of an image (N, 3, H, W) float32 with any sides that are multiples of 128.

        Raises:
            InputError: The image's channels or sides do not fit.
        """
        require_image(image, multiple=MULTIPLE)
        maps: PolarMaps = self.bbox_head(self.neck(self.backbone.pyramid(image)))
        return maps

    def outline(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From image (N, 3, H, W) float32 to scores, boxes and polygons, all float32.

        Scores (N, P, num_classes), 0..1, are probabilities of classes times (centreness + 0.5) / 1.5. Boxes (N, P, 4),
        x0, y0, x1, y1, are those of the branch for boxes. Polygons (N, P, 36, 2) are x, y of the vertices, the first
        below the point, the tenth at its right. Both are in pixels of the input, of which pixel i covers i to i + 1;
        polygons are clipped to it.
        """
        size = (image.shape[2], image.shape[3])
        rows = self.heads(image).rows()
        points, _ = polar_points(size)
        points = points.to(rows.device)
        boxes = decode_distances(points, rows[..., :4])
        polygons = decode_polygons(points, rows[..., 4 : 4 + RAYS], size=size)
        centerness, classes = torch.sigmoid(rows[..., 4 + RAYS : 5 + RAYS]), torch.sigmoid(rows[..., 5 + RAYS :])
        return classes * ((centerness + _RAISED) / (1 + _RAISED)), boxes, polygons

    def forward(self, image: Tensor) -> PolarMaps:
        """The same as :meth:`heads`."""
        return self.heads(image)


def _deploy(module: nn.Module) -> Deployment:
    if not isinstance(module, PolarMask):
        raise ModelError(f"a {type(module).__name__} is no PolarMask")
    return _deployment(module.height, module.width, module.labels, module.backbone_name)


def _deployment(height: int, width: int, labels: tuple[str, ...], backbone: str) -> Deployment:
    return instance_deployment(
        pyramid_preprocess(backbone, height=height, width=width),
        labels=labels,
        rows=point_count((height, width)),
        vertices=RAYS,
    )


# Section 4: SGD, 0.01 for 16 images, 12 epochs, a tenth of it from the 8th and the 11th. The authors' code: 500 steps
# of warm-up from a third (an epoch has 7,330), gradients clipped at 35. Images have one size there and are mirrored.
PAPER = InstanceRecipe(
    epochs=12,
    batch=16,
    learning_rate=0.01,
    weight_decay=1e-4,
    schedule="step",
    milestones=(8, 11),
    clip_norm=35.0,
    scale=(1.0, 1.0),
    jitter=0.0,
)
# From a published backbone to one's own pictures, some hundreds of them.
SMALL = InstanceRecipe(
    epochs=12,
    batch=4,
    optimizer="adamw",
    learning_rate=2e-3,
    weight_decay=0.01,
    decay_vectors=False,
    schedule="cosine",
    warm_up_epochs=1,
    clip_norm=10.0,
    ema_decay=0.99,
    scale=(0.7, 1.5),
    rays="edges",
)

DEPLOYMENT = _deployment(SIDE, SIDE, COCO_LABELS, _BACKBONE)

ENTRIES = (
    ModelEntry(
        name="polarmask",
        build=PolarMask,
        deployment=DEPLOYMENT,
        paper="Xie et al.: PolarMask: Single Shot Instance Segmentation With Polar Representation, CVPR 2020",
        licence="Apache-2.0",
        parameters=3_633_155,
        deploy=_deploy,
        class_predictors=("bbox_head.polar_cls.",),
        recipes={"paper": PAPER, "small": SMALL},
    ),
)
