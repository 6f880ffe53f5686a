"""EPRI-Net: person re-identification by EfficientNet-b0, a pixel-level feature pyramid and position attention.

Paper: Lin, Zhang, Chen, Wu, Zhou, "Efficient Person Re-Identification with Multi-Scale Feature Fusion", sections
III.A to III.C and table II.
Provenance: our own code. The paper does not print all widths; the ones here are the reconstruction that gives each
row of its table II (4.97, 6.56, 7.39, 4.99 and 7.41 million parameters with 751 identities). The backbone bears
timm's names, so ``model.backbone`` takes published ``efficientnet_b0`` weights without their classifier. Options of
ours: ``backbone=efficientnet-lite0``, for published ``tf_efficientnet_lite0`` weights, or a RegNet, whose convolutions
suit integer arithmetic, and ``embedding``, a linear projection of all branches.
Licence: this file, as the rest of edgevis. No weights ship: they must be trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from edgevis.layers import imagenet
from edgevis.layers.efficientnet import HEAD_CHANNELS, LITE_MEAN, LITE_STD, STAGE_CHANNELS, EfficientNetB0
from edgevis.layers.position_attention import PositionAttention
from edgevis.layers.regnet import DESIGNS, RegNet
from edgevis.models.allowed import CLASSES_OR_NONE, one_of, whole
from edgevis.models.entry import ModelEntry, PaperCount
from edgevis.models.recipe import ReIDRecipe
from edgevis.models.unlabelled_recipe import SimilarityDistillationRecipe
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.errors import ModelError

HEIGHT = 384
"""Height of the paper's images; the width is half of it."""

PYRAMID_CHANNELS = 320
EMBEDDING = HEAD_CHANNELS + PYRAMID_CHANNELS

# Position of the backbone's stages in EfficientNetB0.blocks.
_STAGE_80, _STAGE_192, _STAGE_320 = 3, 5, 6
# A RegNet's stage at 1/16 of the sides, which is EfficientNet's from 80 channels on.
_REGNET_STAGE = 3
_HEIGHTS = range(128, 768 + 1, 32)
_STRIPES = 3
_STRIPE_WIDTH = 128
_EXPANDED_SCALE = 0.1
# Values that each pyramid adds to the backbone's.
_BRANCHES = {"none": 0, "stripes": _STRIPES * PYRAMID_CHANNELS, "pixels": PYRAMID_CHANNELS}

Pyramid = Literal["none", "stripes", "pixels"]

BACKBONES = ("efficientnet-b0", "efficientnet-lite0", *DESIGNS)

_WIDTHS = whole(0, 2048)
_LITE = "efficientnet-lite0"


def _deployment(embedding: int, height: int, backbone: str = BACKBONES[0]) -> Deployment:
    # As the published weights have it.
    mean, std = (LITE_MEAN, LITE_STD) if backbone == _LITE else (imagenet.MEAN, imagenet.STD)
    return Deployment(
        task="reid",
        graphs=(
            Graph(
                "embed",
                inputs=(TensorSpec("image", "float32", ("N", 3, height, height // 2)),),
                outputs=(TensorSpec("embedding", "float32", ("N", embedding)),),
            ),
        ),
        preprocess=Preprocess(
            height=height,
            width=height // 2,
            color="RGB",
            mean=mean,
            std=std,
            fit="stretch",
            interpolation="linear",
        ),
    )


DEPLOYMENT = _deployment(EMBEDDING, HEIGHT)


class ConvBNSwish(nn.Sequential):
    """A convolution without bias, batch norm, Swish: (N, C, h, w) -> (N, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
        )


class PixelPyramid(nn.Module):
    """The paper's pixel-level feature pyramid: three maps of one size, aggregated down and up by 1x1 convolutions.

    The levels, top to bottom, are the 1280-channel head and the 320- and 192-channel stages (RegNet: the end and the
    middle of the last stage, and the third). Each residual connection
    comes from the backbone's map through its own projection; only with that reading do the parameters add up to table
    II.
    """

    def __init__(self, inputs: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvBNSwish(size, channels) for size in inputs)
        self.residual = nn.ModuleList(ConvBNSwish(size, channels) for size in inputs)
        self.aggregate = nn.ModuleList(ConvBNSwish(channels, channels) for _ in range(6))

    def forward(self, top: Tensor, middle: Tensor, bottom: Tensor) -> Tensor:
        """Maps (N, C_i, h, w) -> (N, channels, h, w)."""
        maps = (top, middle, bottom)
        lateral = [convolution(x) for convolution, x in zip(self.lateral, maps, strict=True)]
        residual = [convolution(x) for convolution, x in zip(self.residual, maps, strict=True)]
        down_top = self.aggregate[0](lateral[0])
        down_middle = self.aggregate[1](lateral[1] + down_top)
        down_bottom = self.aggregate[2](lateral[2] + down_middle)
        up = self.aggregate[3](down_bottom) + residual[2]
        up = self.aggregate[4](down_middle + up) + residual[1]
        result: Tensor = self.aggregate[5](down_top + up) + residual[0]
        return result


class StripePyramid(nn.Module):
    """The two-level feature pyramid branch of FPB that the paper compares with: 3x3 convolutions of 128 channels.

    Paper: Zhang et al., "FPB: Feature Pyramid Branch for Person Re-Identification", 2021.
    """

    def __init__(self, inputs: tuple[int, int], width: int, outputs: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvBNSwish(size, width) for size in inputs)
        self.residual = nn.ModuleList(ConvBNSwish(width, width) for _ in inputs)
        self.aggregate = nn.ModuleList(ConvBNSwish(width, width, kernel=3) for _ in range(4))
        self.output = ConvBNSwish(width, outputs)

    def forward(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Maps (N, C_i, h, w) -> (N, outputs, h, w)."""
        lateral_top, lateral_bottom = self.lateral[0](top), self.lateral[1](bottom)
        down_top = self.aggregate[0](lateral_top)
        down_bottom = self.aggregate[1](lateral_bottom + down_top)
        up = self.aggregate[2](down_bottom) + self.residual[1](lateral_bottom)
        up = self.aggregate[3](down_top + up) + self.residual[0](lateral_top)
        result: Tensor = self.output(up)
        return result


class EPRINet(nn.Module):
    """EPRI-Net and the rows of its ablation.

    Input: image (N, 3, height, height / 2) float32, RGB, ImageNet mean and standard deviation (EfficientNet-Lite0:
    (x - 127) / 128 of 0..255), the person's box stretched to that size. Output of :meth:`embed`: embedding (N, 1600)
    float32, concat(f_b, f_p), or its projection (N, ``embedding``); rows not normalised: the runtime L2-normalises
    them.

    f_b (1280) is the mean of the backbone's last map times the expanded pyramid, f_p (320) the mean of the pyramid.
    Both are taken **before** the BNNecks, at training (triplet loss) and at test: the paper concatenates the features
    of the two branches and measures Euclidean distance between them, and never mentions a normalised feature; the
    BNNecks stand only before the classifiers. (The strong baseline that BNNeck comes from takes the feature after it;
    that would give each branch its own scale.)

    Args:
        num_identities: Outputs of the classifiers, which only training uses (see :meth:`logits`); 0 leaves them and
            the BNNecks out.
        pyramid: ``pixels`` (the paper's), ``stripes`` (FPB's, by which it is compared; where the map's rows are no
            multiple of three, the lowest stripe is the narrowest) or ``none``.
        attention: Position attention after the 80-channel stage.
        height: Of the images, a multiple of 32 from 128 to 768. The paper's is 384; surveillance crops are often no
            higher than 128, and a smaller image costs less. Weights fit all heights, but are best at their own.
        backbone: ``efficientnet-b0`` (the paper's), ``efficientnet-lite0``, whose widths are the same, or a RegNet, one
            of :data:`edgevis.layers.regnet.DESIGNS`, whose last stage has stride 1, too, and attention after the first
            block of the third; f_b then has the last stage's width. But for the paper's, the pyramid begins by changing
            nothing: f_b is then the baseline's.
        embedding: Outputs of ``fc``, a linear projection of all branches; 0, as in the paper, leaves it out.

    Raises:
        ModelError: An option has no such value.
    """

    def __init__(
        self,
        *,
        num_identities: int,
        pyramid: Pyramid,
        attention: bool,
        height: int = HEIGHT,
        backbone: str = BACKBONES[0],
        embedding: int = 0,
    ) -> None:
        super().__init__()
        whole(_HEIGHTS[0], _HEIGHTS[-1], multiple=_HEIGHTS.step).require("height", height)
        one_of(*BACKBONES).require("backbone", backbone)
        _WIDTHS.require("embedding", embedding)
        self.height = int(height)
        self.backbone_name = backbone
        self.backbone: EfficientNetB0 | RegNet
        if backbone in DESIGNS:
            self.backbone = RegNet(backbone, last_stride=1)
            bottom, head = self.backbone.channels[_REGNET_STAGE - 1 :]
            levels, attended = (head, head, bottom), bottom
        else:
            lite = backbone == _LITE
            self.backbone = EfficientNetB0(num_classes=0, lite=lite, tensorflow=lite, last_stride=1)
            levels = (HEAD_CHANNELS, STAGE_CHANNELS[_STAGE_320], STAGE_CHANNELS[_STAGE_192])
            head, attended = HEAD_CHANNELS, STAGE_CHANNELS[_STAGE_80]
        self.attention = PositionAttention(attended) if attention else None
        self.num_identities = num_identities
        if num_identities:
            self.neck = _neck(head)
            self.classifier = _classifier(head, num_identities)
        self.pixels: PixelPyramid | None = None
        self.stripes: StripePyramid | None = None
        if pyramid == "pixels":
            self.pixels = PixelPyramid(levels, PYRAMID_CHANNELS)
            self.expand = nn.Sequential(nn.Conv2d(PYRAMID_CHANNELS, head, 1, bias=False), nn.BatchNorm2d(head))
            if backbone != BACKBONES[0]:
                nn.init.constant_(self.expand.get_parameter("1.weight"), _EXPANDED_SCALE)
                nn.init.ones_(self.expand.get_parameter("1.bias"))
            if num_identities:
                self.neck_pyramid = _neck(PYRAMID_CHANNELS)
                self.classifier_pyramid = _classifier(PYRAMID_CHANNELS, num_identities)
        elif pyramid == "stripes":
            self.stripes = StripePyramid(levels[:2], _STRIPE_WIDTH, PYRAMID_CHANNELS)
            if num_identities:
                self.classifier_stripes = nn.ModuleList(
                    _classifier(PYRAMID_CHANNELS, num_identities) for _ in range(_STRIPES)
                )
        self.width = head + _BRANCHES[pyramid]
        self.fc: nn.Linear | None = None
        if embedding:
            self.fc = nn.Linear(self.width, embedding)
            self.width = embedding

    def levels(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The backbone's last map and the two below it in the pyramid, all at 1/16: (N, C_i, 24, 12) of 384 x 192."""
        if isinstance(self.backbone, RegNet):
            return self._regnet_levels(self.backbone, image)
        x, kept = self.backbone.stem(image), {}
        for index, stage in enumerate(self.backbone.blocks):
            x = stage(x)
            if index == _STAGE_80 and self.attention is not None:
                x = self.attention(x)
            kept[index] = x
        return self.backbone.head(x), kept[_STAGE_320], kept[_STAGE_192]

    def _regnet_levels(self, backbone: RegNet, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        after = {} if self.attention is None else {f"s{_REGNET_STAGE}.b1": self.attention}
        stages = [maps for _, maps in backbone.stages(image, after=after)]
        last = stages[-1]
        return last[-1], last[(len(last) - 1) // 2], stages[_REGNET_STAGE - 1][-1]

    def branches(self, image: Tensor) -> tuple[Tensor, ...]:
        """The pooled features before any BNNeck: f_b (N, 1280), then f_p (N, 320) or three stripes (N, 320) each."""
        top, middle, bottom = self.levels(image)
        if self.pixels is not None:
            pyramid = self.pixels(top, middle, bottom)
            return (top * self.expand(pyramid)).mean((2, 3)), pyramid.mean((2, 3))
        if self.stripes is not None:
            stripes = self.stripes(top, middle).chunk(_STRIPES, dim=2)
            return top.mean((2, 3)), *(stripe.mean((2, 3)) for stripe in stripes)
        return (top.mean((2, 3)),)

    def pooled(self, image: Tensor) -> Tensor:
        """From image (N, 3, height, height / 2) float32 to all branches joined, (N, 1600) float32 with the pyramid."""
        return torch.cat(self.branches(image), dim=1)

    def embed(self, image: Tensor) -> Tensor:
        """From image (N, 3, height, height / 2) float32 to embedding (N, 1600) float32; in the other rows of table II
        to all branches joined; with ``embedding`` to their projection.
        """
        pooled = self.pooled(image)
        return pooled if self.fc is None else self.fc(pooled)

    def logits(self, branches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs of :meth:`branches` -> (N, num_identities) for each branch; for training's cross-entropy."""
        if not self.num_identities:
            raise ModelError("num_identities is 0: there are no classifiers; allowed: 1 or more")
        first = self.classifier(self.neck(branches[0]))
        if self.pixels is not None:
            return first, self.classifier_pyramid(self.neck_pyramid(branches[1]))
        if self.stripes is not None:
            pairs = zip(self.classifier_stripes, branches[1:], strict=True)
            return first, *(classifier(stripe) for classifier, stripe in pairs)
        return (first,)

    def forward(self, image: Tensor) -> Tensor:
        """The same as :meth:`embed`."""
        return self.embed(image)


def _neck(channels: int) -> nn.BatchNorm1d:
    """A BNNeck: its shift stays 0, frozen, so that the classifier sees features around the origin."""
    neck = nn.BatchNorm1d(channels)
    neck.bias.requires_grad_(False)
    return neck


def _classifier(channels: int, num_identities: int) -> nn.Linear:
    classifier = nn.Linear(channels, num_identities, bias=False)
    nn.init.normal_(classifier.weight, std=0.001)
    return classifier


def _builder(pyramid: Pyramid, *, attention: bool, doc: str) -> Callable[..., EPRINet]:
    def build(
        *,
        num_identities: int = 751,
        height: int = HEIGHT,
        backbone: str = BACKBONES[0],
        embedding: int = 0,
    ) -> EPRINet:
        CLASSES_OR_NONE.require("num_identities", num_identities)
        return EPRINet(
            num_identities=num_identities,
            pyramid=pyramid,
            attention=attention,
            height=height,
            backbone=backbone,
            embedding=embedding,
        )

    build.__doc__ = doc
    return build


epri_net = _builder("pixels", attention=True, doc="The whole network: pixel-level pyramid and position attention.")
epri_net_baseline = _builder("none", attention=False, doc="Table II's baseline: the backbone, a BNNeck, a classifier.")
epri_net_fpb = _builder("stripes", attention=False, doc="Table II's FPB row: the baseline and FPB's pyramid.")
epri_net_pfpb = _builder("pixels", attention=False, doc="Table II's PFPB row: the baseline and the paper's pyramid.")
epri_net_pam = _builder("none", attention=True, doc="Table II's PAM row: the baseline with position attention.")


# Section IV.B, for weights that begin with ImageNet's. Its learning rates, 3.5e-6 to 3.5e-5, are a tenth of those of
# FPB, from which it comes; --set learning_rate=3.5e-4 are those. Random patch is left out: the paper only names it.
PAPER = ReIDRecipe(
    epochs=120,
    optimizer="adam",
    learning_rate=3.5e-5,
    weight_decay=1.625e-4,
    schedule="step",
    milestones=(60, 90),
    warm_up_epochs=20,
    warm_up_from=0.1,
    identities=16,
    images=4,
    triplet_weight=6.375,
    triplet_epochs=10,
)
SMALL = replace(
    PAPER,
    epochs=40,
    learning_rate=3.5e-4,
    schedule="cosine",
    milestones=(),
    warm_up_epochs=2,
    identities=8,
    triplet_epochs=0,
    triplet_weight=1.0,
    jitter=0.2,
)

_PAPER = "Lin, Zhang, Chen, Wu, Zhou: Efficient Person Re-Identification with Multi-Scale Feature Fusion, table II"


# With EfficientNet-Lite0 of published weights, an embedding and a teacher: from no knowledge of persons. The fit to the
# teacher's embeddings begins it, and what resolves the most pixels stays as published.
SIMILARITY = SimilarityDistillationRecipe(
    epochs=5,
    steps_per_epoch=32,
    optimizer="adamw",
    learning_rate=1e-3,
    adam_beta2=0.99,
    weight_decay=1e-4,
    decay_vectors=False,
    schedule="cosine",
    warm_up_epochs=1,
    clip_norm=5.0,
    ema_decay=0.95,
    frozen_norms=True,
    frozen=("backbone.conv_stem", "backbone.bn1", "backbone.blocks.0", "backbone.blocks.1"),
    views=2048,
    fitted_views=2048,
    harder=True,
)

# Necks and classifiers only serve the losses.
_CLASSIFIERS = ("classifier", "neck")


def _entry(name: str, build: Callable[..., EPRINet], embedding: int, parameters: int, printed: str) -> ModelEntry:
    def deploy(module: nn.Module) -> Deployment:
        if not isinstance(module, EPRINet):
            raise ModelError(f"a {type(module).__name__} is no EPRI-Net")
        return _deployment(module.width, module.height, module.backbone_name)

    return ModelEntry(
        name,
        build,
        _deployment(embedding, HEIGHT),
        _PAPER,
        "Apache-2.0",
        parameters,
        deploy=deploy,
        classifier=_CLASSIFIERS,
        recipes={"paper": PAPER, "small": SMALL, "similarity": SIMILARITY},
        printed=PaperCount(f"{printed} M", round(float(printed) * 1_000_000), "total", "table II"),
    )


ENTRIES = (
    _entry("epri-net", epri_net, EMBEDDING, 7_413_149, "7.41"),
    _entry("epri-net-baseline", epri_net_baseline, HEAD_CHANNELS, 4_971_388, "4.97"),
    _entry("epri-net-fpb", epri_net_fpb, HEAD_CHANNELS + _STRIPES * PYRAMID_CHANNELS, 6_563_388, "6.56"),
    _entry("epri-net-pfpb", epri_net_pfpb, EMBEDDING, 7_393_468, "7.39"),
    _entry("epri-net-pam", epri_net_pam, HEAD_CHANNELS, 4_991_069, "4.99"),
)
