"""FEAT: few-shot classification by prototypes that are adapted to each other before they classify.

Paper: Ye, Hu, Zhan, Sha, "Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions", CVPR 2020, the
transformer among its set functions; section 3 and table 1.
Provenance: our own code; parameters bear the names of FEAT's (Sha-Lab/FEAT, MIT), ``encoder`` and ``slf_attn``.
The graph ``adapt`` is run when labels change; an image costs what its encoder costs. With
``backbone="mobilenetv2"`` or ``"efficientnet-lite0"``, which are none of the paper's, training begins with published
weights of the encoder; the adaptation then begins as nearly none.
Licence: this file, as the rest of edgevis. No weights ship: they must be trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor, nn

from edgevis.layers.drop_block import DropBlock
from edgevis.layers.resnet12 import ResNet12Block
from edgevis.layers.set_to_set import SetToSet
from edgevis.models import efficientnet_lite0, mobilenetv2, resnet12
from edgevis.models._encoder import encode_graph, preprocess
from edgevis.models.allowed import CLASSES_OR_NONE, one_of
from edgevis.models.efficientnet_lite0 import EfficientNetLite0
from edgevis.models.entry import ModelEntry
from edgevis.models.mobilenetv2 import MobileNetV2
from edgevis.models.recipe import EpisodeRecipe
from edgevis.models.recipe_adaptation import AdaptationRecipe
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec

Backbone = Literal["convnet", "resnet12", "mobilenetv2", "efficientnet-lite0"]

RES12_CHANNELS = (64, 160, 320, 640)
"""Outputs of the blocks of the paper's ResNet-12, which is wider than Meta-Baseline's."""

PROJECTED = 320
"""Of MobileNetV2's 1280 numbers: the attention has 4 d^2 parameters."""

_CONVNET = 64
# Of EfficientNet-Lite0's projection, as of the weights that ship for it.
_POWER_PERCENT = 80
_DROPOUT = 0.1
_BLOCK = 5

PREPROCESS: dict[Backbone, Preprocess] = {
    # The paper's images are resized to 92 and their centre of 84 is cut; what is enrolled and predicted here is seen
    # whole.
    "convnet": resnet12.PREPROCESS,
    "resnet12": preprocess(
        84,
        mean=(120.39586422 / 255, 115.59361427 / 255, 104.54012653 / 255),
        std=(70.68188272 / 255, 68.27635443 / 255, 72.54505529 / 255),
    ),
    "mobilenetv2": mobilenetv2.PREPROCESS,
    # As of the weights that ship for it.
    "efficientnet-lite0": replace(efficientnet_lite0.PREPROCESS, height=288, width=288),
}

DIMENSIONS: dict[Backbone, int] = {
    "convnet": _CONVNET,
    "resnet12": RES12_CHANNELS[-1],
    "mobilenetv2": PROJECTED,
    "efficientnet-lite0": efficientnet_lite0.GENERAL.dimension,
}


def _deployment(backbone: Backbone) -> Deployment:
    image, dimension = PREPROCESS[backbone], DIMENSIONS[backbone]
    # As in that encoder's own deployment: a root is steep near 0.
    encode = encode_graph(image, dimension, float32=backbone == "efficientnet-lite0")
    adapt = Graph(
        "adapt",
        inputs=(TensorSpec("prototypes", "float32", (1, "labels", dimension)),),
        outputs=(TensorSpec("adapted", "float32", (1, "labels", dimension)),),
        set_of="encode/embedding",
    )
    return Deployment("classify", graphs=(encode, adapt), preprocess=image)


DEPLOYMENT = _deployment("convnet")


class ConvNet(nn.Module):
    """Four convolutions: image (N, 3, 84, 84) float32 -> (N, 64), the maximum of the last map. FEAT's names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*(_convolution(inputs) for inputs in (3, _CONVNET, _CONVNET, _CONVNET)))

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.encoder(image)
        return x.amax((2, 3))


class WideResNet12(nn.Module):
    """The paper's ResNet-12: image (N, 3, 84, 84) float32 -> (N, 640), the mean of the last map. FEAT's names.

    In training, elements of the first two blocks' maps and squares of the others' are dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *RES12_CHANNELS)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(ResNet12Block(first, second)) for first, second in zip(inputs, RES12_CHANNELS, strict=False)
        )
        self.elements = nn.Dropout(_DROPOUT)
        self.blocks3, self.blocks4 = DropBlock(_BLOCK), DropBlock(_BLOCK)

    def forward(self, image: Tensor) -> Tensor:
        x = self.elements(self.layer2(self.elements(self.layer1(image))))
        x = self.blocks4(self.layer4(self.blocks3(self.layer3(x))))
        embedding: Tensor = x.mean((2, 3))
        return embedding

    def begin_step(self, step: int, *, epochs: float) -> None:
        """Set how many training steps were made, which decides how much is dropped."""
        self.blocks3.step = self.blocks4.step = step


class FEAT(nn.Module):
    """An encoder and the set-to-set function that adapts prototypes.

    Input: image (N, 3, side, side) float32, RGB, normalised as :data:`PREPROCESS` says. Output of :meth:`encode`:
    embedding (N, d) float32, rows not normalised, d as in :data:`DIMENSIONS`. Output of :meth:`adapt`: what queries are
    compared with. Output of ``forward``: logits (N, num_classes), or the embedding where there is no classifier.

    Args:
        backbone: The encoder.
        num_classes: Training classes of the linear classifier of pre-training; 0 builds none.
    """

    def __init__(self, *, backbone: Backbone = "convnet", num_classes: int = 0) -> None:
        super().__init__()
        self.backbone_name = backbone
        dimension = DIMENSIONS[backbone]
        self.encoder: nn.Module = _encoder(backbone)
        self.projection = nn.Linear(mobilenetv2.EMBEDDING, dimension) if backbone == "mobilenetv2" else None
        self.slf_attn = SetToSet(dimension)
        if backbone in ("mobilenetv2", "efficientnet-lite0"):
            # What published weights tell apart stays as it is until the attention has learned something.
            nn.init.zeros_(self.slf_attn.fc.weight)
            nn.init.zeros_(self.slf_attn.fc.bias)
        self.classifier = nn.Linear(dimension, num_classes) if num_classes else None

    @property
    def backbone(self) -> nn.Module:
        """The module that takes published weights, see :mod:`edgevis.training.warm_start`."""
        return self.encoder

    def encode(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to embedding (N, d) float32."""
        return self.project(self.features(image))

    def features(self, image: Tensor) -> Tensor:
        """From image to what :meth:`project` takes: the encoder alone."""
        if isinstance(self.encoder, MobileNetV2 | EfficientNetLite0):
            return self.encoder.encode(image)
        features: Tensor = self.encoder(image)
        return features

    def project(self, features: Tensor) -> Tensor:
        """From what :meth:`features` gives to embedding (N, d) float32."""
        return features if self.projection is None else self.projection(features)

    def adapt(self, prototypes: Tensor) -> Tensor:
        """From the mean embedding of each label (1, labels, d) float32 to adapted ones of the same shape."""
        result: Tensor = self.slf_attn(prototypes)
        return result

    def forward(self, image: Tensor) -> Tensor:
        """From image to logits (N, num_classes); without a classifier to :meth:`encode`'s."""
        embedding = self.encode(image)
        if self.classifier is None:
            return embedding
        logits: Tensor = self.classifier(embedding)
        return logits

    def begin_step(self, step: int, *, epochs: float) -> None:
        """Prepare for training step number ``step`` from 0."""
        if isinstance(self.encoder, WideResNet12):
            self.encoder.begin_step(step, epochs=epochs)


def _convolution(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, _CONVNET, 3, padding=1), nn.BatchNorm2d(_CONVNET), nn.ReLU(), nn.MaxPool2d(2)
    )


def _encoder(backbone: Backbone) -> nn.Module:
    if backbone == "convnet":
        return ConvNet()
    if backbone == "resnet12":
        return WideResNet12()
    if backbone == "mobilenetv2":
        return MobileNetV2(num_classes=0)
    return EfficientNetLite0(num_classes=0, embedding=DIMENSIONS[backbone], power_percent=_POWER_PERCENT)


def feat(*, backbone: Backbone = "convnet", num_classes: int = 0) -> FEAT:
    """FEAT on one of its encoders, with a linear classifier of ``num_classes`` outputs if that is not 0."""
    one_of(*get_args(Backbone)).require("backbone", backbone)
    CLASSES_OR_NONE.require("num_classes", num_classes)
    return FEAT(backbone=backbone, num_classes=num_classes)


def _deploy(module: nn.Module) -> Deployment:
    assert isinstance(module, FEAT)  # noqa: S101 - what `feat` makes
    return _deployment(module.backbone_name)


# Section 4 and the published code's arguments for ConvNet with one shot: stage 1, from random weights, then stage 2,
# which goes on from its weights (--weights). With five shots: shot=5, balance=0.1, episode_temperature=32,
# balance_temperature=64.
PRETRAIN = EpisodeRecipe(
    loss="global",
    epochs=500,
    optimizer="adam",
    learning_rate=1e-3,
    schedule="step",
    milestones=(75, 150, 300),
    episodes_per_step=1,
    way=4,
    query=3,
    test_way=16,
)
PAPER = AdaptationRecipe(
    loss="adapted",
    epochs=200,
    steps_per_epoch=100,
    optimizer="adam",
    learning_rate=1e-4,
    schedule="step",
    milestones=tuple(range(20, 200, 20)),
    decay=0.5,
    episodes_per_step=1,
    most_way=5,
    logits="euclidean",
    balance=1.0,
    episode_temperature=64.0,
    balance_temperature=16.0,
    test_episodes=10_000,
)
# The same of ResNet-12; with five shots: shot=5, balance=0.1, balance_temperature=32. The published code has Nesterov's
# momentum.
PAPER_RESNET12 = replace(
    PAPER,
    optimizer="sgd",
    learning_rate=2e-4,
    weight_decay=5e-4,
    milestones=(40, 80, 120, 160),
    balance=0.01,
    balance_temperature=64.0,
)
PRETRAIN_RESNET12 = replace(PRETRAIN, optimizer="sgd", weight_decay=5e-4)
# The attention alone, over a mobile encoder with published weights (--backbone). The rate is the best of three by half
# of the novel classes of Grocery and of Caltech-101.
SMALL = AdaptationRecipe(
    loss="adapted",
    epochs=10,
    steps_per_epoch=60,
    optimizer="adamw",
    learning_rate=1e-4,
    schedule="cosine",
    episodes_per_step=1,
    query=5,
    episode_temperature=0.06,
    balance_temperature=0.06,
    frozen=("encoder",),
)

ENTRIES = (
    ModelEntry(
        name="feat",
        build=feat,
        deployment=DEPLOYMENT,
        paper="Ye et al.: Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions, CVPR 2020",
        licence="Apache-2.0",
        parameters=129_664,
        deploy=_deploy,
        classifier=("classifier.",),
        recipes={
            "paper": PAPER,
            "paper-resnet12": PAPER_RESNET12,
            "pretrain": PRETRAIN,
            "pretrain-resnet12": PRETRAIN_RESNET12,
            "small": SMALL,
        },
    ),
)
