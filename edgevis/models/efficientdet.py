"""EfficientDet-D0: a detector with anchors, a BiFPN and heads that all levels share; 3.9 million parameters.

Paper: Tan, Pang, Le, "EfficientDet: Scalable and Efficient Object Detection", CVPR 2020.
Provenance: our own code; parameters bear the names of ``effdet`` (rwightman/efficientdet-pytorch, Apache-2.0):
``efficientdet_d0`` with ``variant="pytorch"``, ``tf_efficientdet_d0`` with ``variant="tf"``. State dicts published
there load strictly.
Licence: this file, as the rest of edgevis. No weights ship.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgevis.layers.anchors import ANCHORS_PER_CELL, anchor_boxes, decode_anchors
from edgevis.layers.bifpn import LEVELS, BiFPN
from edgevis.layers.pyramid_backbones import BACKBONES, pyramid_backbone, pyramid_preprocess
from edgevis.layers.shared_head import SharedHead
from edgevis.models._detection import MAX_CLASSES, deployment, labels_of
from edgevis.models._image import require_image
from edgevis.models.allowed import TEXT, one_of, whole
from edgevis.models.entry import ModelEntry, PaperCount
from edgevis.models.recipe_detection import DetectionRecipe
from edgevis.models.yolox import FINE_TUNE as YOLOX_FINE_TUNE
from runtime.bundle.spec import MAX_SIDE, Deployment
from runtime.errors import ModelError

SIZE = 512
MULTIPLE = 2 ** LEVELS[-1]
VARIANTS = ("pytorch", "tf")
# The published detectors have an output for each of COCO's ids.
_COCO_IDS = 90
_CHANNELS, _CELLS, _REPEATS = 64, 3, 3
# The probability of an object that an untrained head gives everywhere; section 5.1 takes it from RetinaNet.
_PRIOR = 0.01


class EfficientDet(nn.Module):
    """EfficientDet-D0.

    Input: image (N, 3, size, size) float32 RGB: -1..1 with EfficientNet-Lite0 and MobileNetV2, ImageNet's mean and
    standard deviation with the other backbones.
    Output of :meth:`detect`: scores (N, A, num_classes) float32, 0..1, and boxes (N, A, 4) float32, xyxy in pixels of
    the input, A anchors in the order of :func:`edgevis.layers.anchors.anchor_boxes`.

    Args:
        num_classes: Number of classes.
        size: Side of the square images in pixels, a multiple of 128. It changes no parameter.
        variant: ``tf`` has the padding, the batch norms' eps and the biases of weights that TensorFlow made.
        backbone: ``efficientnet-b0``; ``efficientnet-lite0``, which has always TensorFlow's padding, as its published
            weights need; ``mobilenetv2``; ``ghostnet``; or a RegNet, one of :data:`edgevis.layers.regnet.DESIGNS`.
        labels: Names of the classes, separated by commas; see :func:`edgevis.models._detection.labels_of`.

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(
        self,
        *,
        num_classes: int = _COCO_IDS,
        size: int = SIZE,
        variant: str = "pytorch",
        backbone: str = "efficientnet-b0",
        labels: str = "",
    ) -> None:
        super().__init__()
        whole(1, MAX_CLASSES).require("num_classes", num_classes)
        whole(MULTIPLE, MAX_SIDE, multiple=MULTIPLE).require("size", size)
        one_of(*VARIANTS).require("variant", variant)
        one_of(*BACKBONES).require("backbone", backbone)
        TEXT.require("labels", labels)
        self.labels = labels_of(num_classes, labels)
        self.size, self.backbone_name = size, backbone
        tensorflow = variant == "tf"
        self.backbone = pyramid_backbone(backbone, tensorflow=tensorflow)
        self.fpn = BiFPN(self.backbone.channels, channels=_CHANNELS, cells=_CELLS, tensorflow=tensorflow)
        self.class_net = SharedHead(
            _CHANNELS,
            ANCHORS_PER_CELL * num_classes,
            repeats=_REPEATS,
            redundant_bias=tensorflow,
            bias=-math.log((1 - _PRIOR) / _PRIOR),
        )
        self.box_net = SharedHead(_CHANNELS, ANCHORS_PER_CELL * 4, repeats=_REPEATS, redundant_bias=tensorflow)

    def heads(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The raw maps of levels 3 to 7, of an image with any sides that are multiples of 128.

        From image (N, 3, H, W) float32 to five class maps (N, 9 * num_classes, h, w), logits, and five box maps
        (N, 36, h, w), the code of :func:`edgevis.layers.anchors.encode_anchors`. Channels are anchor-major: anchor a,
        then the class or the coordinate.

        Raises:
            InputError: The image's channels or sides do not fit.
        """
        require_image(image, multiple=MULTIPLE)
        maps = self.fpn(self.backbone.pyramid(image))
        return self.class_net(maps), self.box_net(maps)

    def detect(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """From image (N, 3, H, W) float32 to scores (N, A, num_classes) and boxes (N, A, 4) float32."""
        classes, codes = self.heads(image)
        anchors = anchor_boxes((image.shape[2], image.shape[3])).to(image.device)
        boxes = decode_anchors(rows_of(codes, 4).float(), anchors)
        return torch.sigmoid(rows_of(classes, len(self.labels))), boxes

    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The same as :meth:`heads`."""
        return self.heads(image)


def rows_of(maps: list[Tensor], columns: int) -> Tensor:
    """Maps (N, 9 * columns, h, w) of all levels as rows (N, A, columns), in the order of the anchors."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns) for x in maps], dim=1)


def _deploy(module: nn.Module) -> Deployment:
    if not isinstance(module, EfficientDet):
        raise ModelError(f"a {type(module).__name__} is no EfficientDet")
    return _deployment(module.size, module.labels, module.backbone_name)


def _deployment(size: int, labels: tuple[str, ...], backbone: str) -> Deployment:
    # As published but for the filling, which is the mean colour (124, 116, 104) there, and the filter, which is cubic.
    preprocess = pyramid_preprocess(backbone, height=size, width=size)
    rows = sum((size >> level) ** 2 for level in LEVELS) * ANCHORS_PER_CELL
    return deployment(preprocess, labels=labels, rows=rows)


# Section 5.1 and the authors' code: 300 epochs of batches of 64 at 0.08 (the paper has 128 at 0.16), one epoch of
# warm-up from a tenth, cosine, focal loss with gamma 1.5, scale 0.1 to 2, gradients clipped at 10, average of 0.9998.
PAPER = DetectionRecipe(
    loss="efficientdet",
    epochs=300,
    batch=64,
    learning_rate=0.08,
    weight_decay=4e-5,
    decay_vectors=False,
    schedule="cosine",
    warm_up_epochs=1,
    clip_norm=10.0,
    ema_decay=0.9998,
    scale=(0.1, 2.0),
    jitter=0.0,
)
# From published weights, or a published backbone, to other classes or one's own pictures.
FINE_TUNE = replace(YOLOX_FINE_TUNE, loss="efficientdet", batch=8, learning_rate=2e-4, mosaic=0.0, l1_epochs=0)

DEPLOYMENT = _deployment(SIZE, labels_of(_COCO_IDS), BACKBONES[0])

ENTRIES = (
    ModelEntry(
        name="efficientdet-d0",
        build=EfficientDet,
        deployment=DEPLOYMENT,
        paper="Tan, Pang, Le: EfficientDet: Scalable and Efficient Object Detection, CVPR 2020",
        licence="Apache-2.0",
        parameters=3_877_763,
        deploy=_deploy,
        class_predictors=("class_net.predict.conv_pw.",),
        recipes={"paper": PAPER, "fine-tune": FINE_TUNE},
        printed=PaperCount("3.9 M", 3_900_000, "total", "Table 2"),
    ),
)
