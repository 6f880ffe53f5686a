"""AFL-Net: two ResNet-12 branches, one trained on all classes and one in episodes, fused by cross-attention.

Paper: Tang, Xia, Chen, Du, Wang, "Task-Specific Few-Shot Image Classification by Balancing Sample-Level and Class-Level
Generalization" (the Attention-based Fusion Learning Model), section 3, figure 3 and table 1.
Provenance: our own code. The paper prints no parameter count and leaves the widths of the fusion open. This is the
reading that follows its sentence "the weighted features are concatenated as the input of the next block": after block
3 both gated maps are joined to 512 channels, and each branch's block 4 takes all of them.
With ``backbone="mobilenetv2"`` or ``"efficientnet-lite0"``, which are none of the paper's, training begins with
published ImageNet weights: that is for some hundred images, where 84 x 84 from scratch is weak.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from edgevis.layers.cross_attention import CrossAttention
from edgevis.layers.resnet12 import CHANNELS, ResNet12Block
from edgevis.models import efficientnet_lite0, mobilenetv2
from edgevis.models._encoder import deployment
from edgevis.models.allowed import CLASSES, one_of
from edgevis.models.efficientnet_lite0 import EfficientNetLite0
from edgevis.models.entry import ModelEntry
from edgevis.models.mobilenetv2 import MobileNetV2
from edgevis.models.resnet12 import PAPER, PREPROCESS, SMALL
from runtime.bundle.spec import Deployment

EMBEDDING = 2 * CHANNELS[3]

Backbone = Literal["resnet12", "mobilenetv2", "efficientnet-lite0"]

# Of the mobile backbones' stages: the stem's last has 64 channels (Lite0: 80), the branches' first 96 (Lite0: 112).
_STEM_STAGES = 4


DEPLOYMENT = deployment(PREPROCESS, EMBEDDING)
MOBILE_DEPLOYMENTS = {
    "mobilenetv2": deployment(mobilenetv2.PREPROCESS, 2 * mobilenetv2.EMBEDDING),
    "efficientnet-lite0": deployment(efficientnet_lite0.PREPROCESS, 2 * mobilenetv2.EMBEDDING),
}


class AFLFeatures(NamedTuple):
    """The outputs of one training pass; a plain tuple for code that walks over a model's outputs.

    Attributes:
        global_embedding: X_global, (N, d) float32: d is 512, with the mobile backbones 1280.
        local_embedding: X_local, (N, d) float32.
        embedding: X_cat = concat(X_global, X_local), (N, 2 d) float32; what :meth:`TwoBranches.encode` returns.
        global_logits: (N, num_classes) float32, the linear classifier on X_global.
    """

    global_embedding: Tensor
    local_embedding: Tensor
    embedding: Tensor
    global_logits: Tensor


class MutualGates(nn.Module):
    """Two cross-attentions, one each way: maps G and L (N, C, h, w) -> z(L) * G and z'(G) * L.

    Args:
        channels: C.
        open_alike: Whether all gates begin at one half, whatever the maps are.
    """

    def __init__(self, channels: int, *, open_alike: bool = False) -> None:
        super().__init__()
        self.to_global = CrossAttention(channels)
        self.to_local = CrossAttention(channels)
        if open_alike:
            nn.init.zeros_(self.to_global.expand.weight)
            nn.init.zeros_(self.to_local.expand.weight)

    def forward(self, global_map: Tensor, local_map: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_global(global_map, local_map), self.to_local(local_map, global_map)


class TwoBranches(nn.Module):
    """A Global and a Local branch, and the linear classifier on the Global one's embedding.

    Both branches see the same whole image. *Global* and *Local* name what trains them, not what they look at: the
    Global branch learns a linear classifier over all training classes, the Local one few-shot episodes among some of
    them (:class:`edgevis.losses.AttentionFusionLoss`). So one image input is all that inference needs.

    Each cross-attention multiplies its *source* flow by the gate of its *target* flow, as the text of section 3.1 says;
    the printed equation 3 would make it squeeze-and-excitation of one flow (:class:`edgevis.layers.CrossAttention`).
    """

    classifier: nn.Linear

    def branches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """X_global and X_local, (N, d) float32 each, of image (N, 3, side, side) float32."""
        raise NotImplementedError

    def encode(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to embedding (N, 2 d) float32, rows not normalised."""
        return torch.cat(self.branches(image), dim=1)

    def forward(self, image: Tensor) -> AFLFeatures:
        """From the same image to the arguments of :class:`edgevis.losses.AttentionFusionLoss`."""
        global_embedding, local_embedding = self.branches(image)
        return AFLFeatures(
            global_embedding,
            local_embedding,
            torch.cat((global_embedding, local_embedding), dim=1),
            self.classifier(global_embedding),
        )


class AFLNet(TwoBranches):
    """The Attention-based Fusion Learning Model.

    Input: image (N, 3, 84, 84) float32, RGB, ImageNet mean and standard deviation. Output of :meth:`encode`: embedding
    (N, 1024) float32, rows not normalised: the runtime L2-normalises them.

    Args:
        num_classes: Outputs of the Global branch's classifier, which only training uses.
        attention: False leaves the gates out and joins the plain maps: table 1's "w/o attention".
        channels: Outputs of the four blocks, those of the last two multiples of 16; the paper's are the default.
    """

    def __init__(self, *, num_classes: int, attention: bool, channels: tuple[int, int, int, int] = CHANNELS) -> None:
        super().__init__()
        self.global_stem = _stem(channels)
        self.local_stem = _stem(channels)
        self.gates3 = MutualGates(channels[2]) if attention else None
        self.global_layer4 = ResNet12Block(2 * channels[2], channels[3])
        self.local_layer4 = ResNet12Block(2 * channels[2], channels[3])
        self.gates4 = MutualGates(channels[3]) if attention else None
        self.classifier = nn.Linear(channels[3], num_classes)

    def branches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """X_global and X_local, (N, 512) float32 each, of image (N, 3, 84, 84) float32."""
        global_map, local_map = self.global_stem(image), self.local_stem(image)
        if self.gates3 is not None:
            global_map, local_map = self.gates3(global_map, local_map)
        joined = torch.cat((global_map, local_map), dim=1)
        global_map, local_map = self.global_layer4(joined), self.local_layer4(joined)
        if self.gates4 is not None:
            global_map, local_map = self.gates4(global_map, local_map)
        return global_map.mean((2, 3)), local_map.mean((2, 3))


class MobileStem(nn.Module):
    """The stem: the first four stages, image (N, 3, 224, 224) -> (N, C, 14, 14) with C = 64 or 80. timm's names.

    Args:
        whole: The network whose modules it takes.
    """

    def __init__(self, whole: MobileNetV2 | EfficientNetLite0) -> None:
        super().__init__()
        self.conv_stem, self.bn1, self.act1 = whole.conv_stem, whole.bn1, whole.act1
        self.blocks = nn.Sequential(*_stages(whole)[:_STEM_STAGES])

    def forward(self, image: Tensor) -> Tensor:
        result: Tensor = self.blocks(self.act1(self.bn1(self.conv_stem(image))))
        return result


class MobileBranch(nn.Module):
    """The rest of the network in two parts, between which the branches meet. timm's names.

    Args:
        whole: The network whose modules it takes.

    Attributes:
        joined: Channels of the maps of :meth:`first`: 96 of MobileNetV2, 112 of EfficientNet-Lite0.
    """

    def __init__(self, whole: MobileNetV2 | EfficientNetLite0) -> None:
        super().__init__()
        rest = list(enumerate(_stages(whole)))[_STEM_STAGES:]
        self.blocks = nn.ModuleDict({str(place): stage for place, stage in rest})
        self.conv_head, self.bn2, self.act2 = whole.conv_head, whole.bn2, whole.act2
        self.joined = [module.num_features for module in rest[0][1].modules() if isinstance(module, nn.BatchNorm2d)][-1]

    def first(self, x: Tensor) -> Tensor:
        """(N, C, 14, 14) -> (N, joined, 14, 14)."""
        result: Tensor = self.blocks["4"](x)
        return result

    def rest(self, x: Tensor) -> Tensor:
        """(N, joined, 14, 14) -> (N, 1280, 7, 7), 0..6."""
        x = self.blocks["6"](self.blocks["5"](x))
        result: Tensor = self.act2(self.bn2(self.conv_head(x)))
        return result


class MobileAFLNet(TwoBranches):
    """AFL-Net on MobileNetV2 or EfficientNet-Lite0: one stem, then two branches that meet where the paper's do.

    Input: image (N, 3, 224, 224) float32, RGB, -1..1. Output of :meth:`encode`: embedding (N, 2560) float32, >= 0, rows
    not normalised: the runtime L2-normalises them. What follows gives MobileNetV2's numbers; EfficientNet-Lite0's
    stages have 80 and 112 channels where its have 64 and 96.

    Both branches begin with the same published weights, and the stages up to the 64-channel one are half of
    MobileNetV2's arithmetic (152 of 299 million multiplications at 224 x 224). So there is one stem for both: 454
    million in all, where two would have 606.

    The gated maps of the 96-channel stage are joined to 192 channels, and each branch takes all of them through a 1x1
    convolution (``global_join``, ``local_join``), which keeps the shape that the published 160-channel stage takes. It
    begins as the identity on the branch's own half, and 0 on the other. The gates begin at one half exactly, as their
    last weights begin at 0, so the identity is doubled. Those after the head begin alike and halve the embedding,
    whose direction stays. So with published weights both halves of the embedding begin as MobileNetV2's own, and
    training moves away from there. (Gates with PyTorch's usual weights begin at 0.37 to 0.65: on photographs the
    halves' cosines to MobileNetV2's were then 0.95 to 0.99.)

    Args:
        num_classes: As for :class:`AFLNet`.
        attention: As for :class:`AFLNet`; without gates the identity is not doubled.
        backbone: ``mobilenetv2`` or ``efficientnet-lite0``.
    """

    def __init__(self, *, num_classes: int, attention: bool, backbone: Backbone = "mobilenetv2") -> None:
        super().__init__()
        self.backbone_name = backbone
        whole = _mobile(backbone)
        self.stem = MobileStem(whole)
        self.global_branch = MobileBranch(whole)
        self.local_branch = MobileBranch(_mobile(backbone))
        joined = self.global_branch.joined
        self.gates3 = MutualGates(joined, open_alike=True) if attention else None
        self.global_join = _join(joined, 0, 2.0 if attention else 1.0)
        self.local_join = _join(joined, joined, 2.0 if attention else 1.0)
        self.gates4 = MutualGates(mobilenetv2.EMBEDDING, open_alike=True) if attention else None
        self.classifier = nn.Linear(mobilenetv2.EMBEDDING, num_classes)

    @property
    def backbones(self) -> tuple[nn.Module, ...]:
        """The modules that take published weights of the backbone, see :mod:`edgevis.training.warm_start`."""
        return self.stem, self.global_branch, self.local_branch

    def branches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """X_global and X_local, (N, 1280) float32 each, of image (N, 3, 224, 224) float32."""
        x = self.stem(image)
        global_map, local_map = self.global_branch.first(x), self.local_branch.first(x)
        if self.gates3 is not None:
            global_map, local_map = self.gates3(global_map, local_map)
        joined = torch.cat((global_map, local_map), dim=1)
        global_map = self.global_branch.rest(self.global_join(joined))
        local_map = self.local_branch.rest(self.local_join(joined))
        if self.gates4 is not None:
            global_map, local_map = self.gates4(global_map, local_map)
        return global_map.mean((2, 3)), local_map.mean((2, 3))


def _mobile(backbone: Backbone) -> MobileNetV2 | EfficientNetLite0:
    """A whole mobile network with random weights; its classifier is not used."""
    if backbone == "mobilenetv2":
        return MobileNetV2(num_classes=1)
    return EfficientNetLite0(num_classes=1)


def _stages(whole: MobileNetV2 | EfficientNetLite0) -> list[nn.Module]:
    return list(whole.blocks.children())


def _join(channels: int, start: int, factor: float) -> nn.Conv2d:
    """2 ``channels`` joined -> ``channels``; begins as ``factor`` times the half that starts at ``start``."""
    join = nn.Conv2d(2 * channels, channels, 1, bias=False)
    nn.init.zeros_(join.weight)
    with torch.no_grad():
        join.weight[:, start : start + channels, 0, 0] = factor * torch.eye(channels)
    return join


def _stem(channels: tuple[int, int, int, int]) -> nn.Sequential:
    """Blocks 1 to 3: an image of 84 x 84 becomes 10 x 10."""
    return nn.Sequential(
        ResNet12Block(3, channels[0]), ResNet12Block(channels[0], channels[1]), ResNet12Block(channels[1], channels[2])
    )


def _build(attention: bool, num_classes: int, backbone: Backbone) -> TwoBranches:
    CLASSES.require("num_classes", num_classes)
    one_of(*get_args(Backbone)).require("backbone", backbone)
    if backbone == "resnet12":
        return AFLNet(num_classes=num_classes, attention=attention)
    return MobileAFLNet(num_classes=num_classes, attention=attention, backbone=backbone)


def afl_net(*, num_classes: int = 64, backbone: Backbone = "resnet12") -> TwoBranches:
    """The whole network; miniImageNet has 64 training classes, ``resnet12`` is the paper's backbone."""
    return _build(True, num_classes, backbone)


def afl_net_no_attention(*, num_classes: int = 64, backbone: Backbone = "resnet12") -> TwoBranches:
    """Table 1's "w/o attention": the same branches and joins without the gates."""
    return _build(False, num_classes, backbone)


def _deploy(module: nn.Module) -> Deployment:
    return MOBILE_DEPLOYMENTS[module.backbone_name] if isinstance(module, MobileAFLNet) else DEPLOYMENT


_PAPER = "Tang et al.: Task-Specific Few-Shot Image Classification, section 3 and table 1"

# For a mobile backbone with published weights. The rate is the better of two by the validation classes of Grocery.
FINE_TUNE = replace(
    SMALL,
    loss="fusion",
    epochs=8,
    steps_per_epoch=30,
    optimizer="adamw",
    learning_rate=2e-4,
    weight_decay=1e-4,
    clip_norm=0.0,
    frozen=("stem",),
)
RECIPES = {
    "paper": replace(PAPER, loss="fusion"),
    "small": replace(SMALL, loss="fusion"),
    "fine-tune": FINE_TUNE,
}

ENTRIES = (
    ModelEntry(
        "afl-net",
        afl_net,
        DEPLOYMENT,
        _PAPER,
        "Apache-2.0",
        18_729_792,
        deploy=_deploy,
        classifier=("classifier.",),
        recipes=RECIPES,
    ),
    ModelEntry(
        "afl-net-no-attention",
        afl_net_no_attention,
        DEPLOYMENT,
        _PAPER,
        "Apache-2.0",
        18_647_872,
        deploy=_deploy,
        classifier=("classifier.",),
        recipes=RECIPES,
    ),
)
