"""YOLOX-nano: an anchor-free detector of 0.91 million parameters.

Paper: Ge, Liu, Wang, Li, Sun, "YOLOX: Exceeding YOLO Series in 2021", 2021; YOLOX-Nano is the depthwise variant of
its section 3.
Provenance: our own code; parameters bear the names of YOLOX (Megvii-BaseDetection/YOLOX, Apache-2.0, depth 0.33,
width 0.25), so the state dicts published there load strictly. Its weights for COCO are the reference; none ship.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.layers.csp_darknet import (
    ACTIVATIONS,
    ConvBNAct,
    CSPDarknet,
    CSPLayer,
    DepthwiseConvBNAct,
    set_activation,
)
from edgevis.layers.grid_boxes import cell_grid, decode_cells
from edgevis.models._detection import COCO_LABELS, MAX_CLASSES, deployment, labels_of
from edgevis.models._image import require_image
from edgevis.models.allowed import TEXT, one_of, whole
from edgevis.models.entry import ModelEntry, PaperCount
from edgevis.models.recipe_detection import DetectionRecipe
from runtime.bundle.spec import MAX_SIDE, Deployment, Preprocess
from runtime.errors import ModelError

STRIDES = (8, 16, 32)
SIDE = 416
_DEPTH, _WIDTH = 0.33, 0.25
# The probability of an object that an untrained head gives everywhere, after RetinaNet (Lin et al., ICCV 2017).
_PRIOR = 0.01


class PathAggregation(nn.Module):
    """YOLOX's PAFPN: maps of three scales exchange features downwards and upwards.

    Input: image (N, 3, H, W). Output: three maps at 1/8, 1/16 and 1/32 with the channels of :attr:`channels`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = CSPDarknet(depth=_DEPTH, width=_WIDTH)
        low, middle, high = self.channels = self.backbone.channels
        self.lateral_conv0 = ConvBNAct(high, middle)
        self.C3_p4 = CSPLayer(2 * middle, middle)
        self.reduce_conv1 = ConvBNAct(middle, low)
        self.C3_p3 = CSPLayer(2 * low, low)
        self.bu_conv2 = DepthwiseConvBNAct(low, low, stride=2)
        self.C3_n3 = CSPLayer(2 * low, middle)
        self.bu_conv1 = DepthwiseConvBNAct(middle, middle, stride=2)
        self.C3_n4 = CSPLayer(2 * middle, high)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        third, fourth, fifth = self.backbone(image)
        top = self.lateral_conv0(fifth)
        inner = self.reduce_conv1(self.C3_p4(torch.cat([_doubled(top), fourth], dim=1)))
        low: Tensor = self.C3_p3(torch.cat([_doubled(inner), third], dim=1))
        middle: Tensor = self.C3_n3(torch.cat([self.bu_conv2(low), inner], dim=1))
        high: Tensor = self.C3_n4(torch.cat([self.bu_conv1(middle), top], dim=1))
        return low, middle, high


class DecoupledHead(nn.Module):
    """YOLOX's head: separate convolutions for class and box at each level.

    Output: a map for each level, (N, 5 + num_classes, h, w): box code (x, y, w, h), objectness logit, class logits.
    """

    def __init__(self, channels: tuple[int, ...], *, num_classes: int) -> None:
        super().__init__()
        middle = channels[0]
        self.stems = nn.ModuleList(ConvBNAct(inputs, middle) for inputs in channels)
        self.cls_convs = nn.ModuleList(_tower(middle) for _ in channels)
        self.reg_convs = nn.ModuleList(_tower(middle) for _ in channels)
        self.cls_preds = nn.ModuleList(nn.Conv2d(middle, num_classes, 1) for _ in channels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(middle, 4, 1) for _ in channels)
        self.obj_preds = nn.ModuleList(nn.Conv2d(middle, 1, 1) for _ in channels)
        for predictor in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(predictor.get_parameter("bias"), -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        outputs = []
        for level, x in enumerate(maps):
            x = self.stems[level](x)
            region = self.reg_convs[level](x)
            classes = self.cls_preds[level](self.cls_convs[level](x))
            outputs.append(torch.cat([self.reg_preds[level](region), self.obj_preds[level](region), classes], dim=1))
        return outputs


class YOLOX(nn.Module):
    """YOLOX-nano.

    Input: image (N, 3, height, width) float32, BGR, 0..255.
    Output of :meth:`detect`: scores (N, A, num_classes) float32, 0..1, and boxes (N, A, 4) float32, xyxy in pixels of
    the input. The A rows are the cells of the levels with strides 8, 16, 32, in row-major order: 3,549 at 416 x 416.

    Args:
        num_classes: Number of classes.
        height, width: Size of the images in pixels, multiples of 32. It changes no parameter.
        labels: Names of the classes, separated by commas; see :func:`edgevis.models._detection.labels_of`.
        activation: ``silu`` as published, or, for CPUs, ``hardswish`` or ``relu``. It changes no parameter, but weights
            that were trained with another one must be trained further.

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(
        self,
        *,
        num_classes: int = len(COCO_LABELS),
        height: int = SIDE,
        width: int = SIDE,
        labels: str = "",
        activation: str = "silu",
    ) -> None:
        super().__init__()
        whole(1, MAX_CLASSES).require("num_classes", num_classes)
        side = whole(STRIDES[-1], MAX_SIDE, multiple=STRIDES[-1])
        side.require("height", height)
        side.require("width", width)
        TEXT.require("labels", labels)
        one_of(*ACTIVATIONS).require("activation", activation)
        self.labels = labels_of(num_classes, labels)
        self.height, self.width = height, width
        self.backbone = PathAggregation()
        self.head = DecoupledHead(self.backbone.channels, num_classes=num_classes)
        set_activation(self, activation)

    def heads(self, image: Tensor) -> list[Tensor]:
        """The raw maps at strides 8, 16 and 32, of an image with any sides that are multiples of 32.

        From image (N, 3, H, W) float32 to three maps (N, 5 + num_classes, H / stride, W / stride) float32: the box code
        (x, y, w, h) of :func:`edgevis.layers.grid_boxes.decode_cells`, the logit of objectness, the logits of the
        classes.

        Raises:
            InputError: The image's channels or sides do not fit.
        """
        require_image(image, multiple=STRIDES[-1])
        maps: list[Tensor] = self.head(self.backbone(image))
        return maps

    def detect(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """From image (N, 3, H, W) float32 to scores (N, A, num_classes) and boxes (N, A, 4) float32.

        A score is the probability of an object times that of the class.
        """
        raw = torch.cat([x.flatten(2) for x in self.heads(image)], dim=2).transpose(1, 2)
        code, objectness, classes = raw[..., :4], raw[..., 4:5], raw[..., 5:]
        corners, strides = cell_grid((image.shape[2], image.shape[3]), STRIDES)
        boxes = decode_cells(code.float(), corners.to(raw.device), strides.to(raw.device))
        return torch.sigmoid(objectness) * torch.sigmoid(classes), boxes

    def forward(self, image: Tensor) -> list[Tensor]:
        """The same as :meth:`heads`."""
        return self.heads(image)


def _tower(channels: int) -> nn.Sequential:
    return nn.Sequential(DepthwiseConvBNAct(channels, channels), DepthwiseConvBNAct(channels, channels))


def _doubled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def deployment_of_module(module: nn.Module) -> Deployment:
    """The deployment of a :class:`YOLOX` with its own size and labels; ModelError for another module."""
    if not isinstance(module, YOLOX):
        raise ModelError(f"a {type(module).__name__} is no YOLOX")
    return yolox_deployment(module.height, module.width, module.labels)


def yolox_deployment(height: int, width: int, labels: tuple[str, ...]) -> Deployment:
    # As published: the image at the top left, BGR values as they are.
    preprocess = Preprocess(
        height=height, width=width, color="BGR", scale=1.0, fit="letterbox", align="top-left", pad_value=114
    )
    rows = sum((height // stride) * (width // stride) for stride in STRIDES)
    return deployment(preprocess, labels=labels, rows=rows)


# Section 2.1: SGD, 0.01 for 64 images by the linear rule, 5 epochs of warm-up, cosine, no mosaic and an L1 loss in the
# last 15 of 300 epochs; of the released code for the nano model: mosaic half the time, no mixup, average of 0.9998.
PAPER = DetectionRecipe(
    epochs=300,
    batch=64,
    learning_rate=0.01,
    weight_decay=5e-4,
    decay_vectors=False,
    schedule="cosine",
    warm_up_epochs=5,
    warm_up_from=0.0,
    ema_decay=0.9998,
    scale=(0.5, 1.5),
    jitter=0.4,
    mosaic=0.5,
    l1_epochs=15,
)
# From published weights to other classes or to one's own pictures, some tens to some thousands of them.
FINE_TUNE = DetectionRecipe(
    epochs=30,
    batch=16,
    optimizer="adamw",
    learning_rate=5e-4,
    weight_decay=0.01,
    decay_vectors=False,
    schedule="cosine",
    warm_up_epochs=1,
    clip_norm=10.0,
    ema_decay=0.998,
    mosaic=0.5,
    l1_epochs=5,
)

DEPLOYMENT = yolox_deployment(SIDE, SIDE, COCO_LABELS)

ENTRIES = (
    ModelEntry(
        name="yolox-nano",
        build=YOLOX,
        deployment=DEPLOYMENT,
        paper="Ge, Liu, Wang, Li, Sun: YOLOX: Exceeding YOLO Series in 2021, 2021",
        licence="Apache-2.0",
        parameters=912_159,
        deploy=deployment_of_module,
        class_predictors=("head.cls_preds.",),
        recipes={"paper": PAPER, "fine-tune": FINE_TUNE},
        printed=PaperCount("0.91 M", 910_000, "total", "abstract"),
    ),
)
