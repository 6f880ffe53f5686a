"""AFL-Net: two ResNet-12 branches, one trained on all classes and one in episodes, fused by cross-attention.

Paper: Tang, Xia, Chen, Du, Wang, "Task-Specific Few-Shot Image Classification by Balancing Sample-Level and Class-Level
Generalization" (the Attention-based Fusion Learning Model), section 3, figure 3 and table 1.
Provenance: our own code. The paper prints no parameter count and leaves the widths of the fusion open. This is the
reading that follows its sentence "the weighted features are concatenated as the input of the next block": after block
3 both gated maps are joined to 512 channels, and each branch's block 4 takes all of them.
Licence: this file, as the rest of edgevis. No weights ship: they must be trained.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgevis.layers.cross_attention import CrossAttention
from edgevis.layers.resnet12 import CHANNELS, ResNet12Block
from edgevis.models.entry import ModelEntry
from edgevis.models.resnet12 import PAPER, PREPROCESS, SMALL
from runtime.errors import ModelError
from runtime.spec import Deployment, Graph, TensorSpec

EMBEDDING = 2 * CHANNELS[3]

DEPLOYMENT = Deployment(
    task="classify",
    graphs=(
        Graph(
            "encode",
            inputs=(TensorSpec("image", "float32", ("N", 3, 84, 84)),),
            outputs=(TensorSpec("embedding", "float32", ("N", EMBEDDING)),),
        ),
    ),
    preprocess=PREPROCESS,
)


class AFLFeatures(NamedTuple):
    """What training takes from one pass; a plain tuple to whatever walks over a model's outputs.

    Attributes:
        global_embedding: X_global, (N, 512) float32.
        local_embedding: X_local, (N, 512) float32.
        embedding: X_cat = concat(X_global, X_local), (N, 1024) float32; what :meth:`AFLNet.encode` returns.
        global_logits: (N, num_classes) float32, the linear classifier on X_global.
    """

    global_embedding: Tensor
    local_embedding: Tensor
    embedding: Tensor
    global_logits: Tensor


class MutualGates(nn.Module):
    """Two cross-attentions, one each way: maps G and L (N, C, h, w) -> z(L) * G and z'(G) * L."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_global = CrossAttention(channels)
        self.to_local = CrossAttention(channels)

    def forward(self, global_map: Tensor, local_map: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_global(global_map, local_map), self.to_local(local_map, global_map)


class AFLNet(nn.Module):
    """The Attention-based Fusion Learning Model.

    Input: image (N, 3, 84, 84) float32, RGB, ImageNet mean and standard deviation. Output of :meth:`encode`: embedding
    (N, 1024) float32, rows not normalised: the runtime L2-normalises them.

    Both branches see the same whole image. *Global* and *Local* name what trains them, not what they look at: the
    Global branch learns a linear classifier over all training classes, the Local one few-shot episodes among some of
    them (:class:`edgevis.losses.AttentionFusionLoss`). So one image input is all that inference needs.

    Each cross-attention multiplies its *source* flow by the gate of its *target* flow, as the text of section 3.1 says;
    the printed equation 3 would make it squeeze-and-excitation of one flow (:class:`edgevis.layers.CrossAttention`).

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

    def encode(self, image: Tensor) -> Tensor:
        """From image (N, 3, 84, 84) float32 to embedding (N, 1024) float32."""
        return torch.cat(self.branches(image), dim=1)

    def forward(self, image: Tensor) -> AFLFeatures:
        """From image (N, 3, 84, 84) float32 to all that :class:`edgevis.losses.AttentionFusionLoss` needs."""
        global_embedding, local_embedding = self.branches(image)
        return AFLFeatures(
            global_embedding,
            local_embedding,
            torch.cat((global_embedding, local_embedding), dim=1),
            self.classifier(global_embedding),
        )


def _stem(channels: tuple[int, int, int, int]) -> nn.Sequential:
    """Blocks 1 to 3: an image of 84 x 84 becomes 10 x 10."""
    return nn.Sequential(
        ResNet12Block(3, channels[0]), ResNet12Block(channels[0], channels[1]), ResNet12Block(channels[1], channels[2])
    )


def _build(attention: bool, num_classes: int) -> AFLNet:
    if num_classes < 1:
        raise ModelError(f"num_classes is {num_classes}; allowed: 1 or more")
    return AFLNet(num_classes=num_classes, attention=attention)


def afl_net(*, num_classes: int = 64) -> AFLNet:
    """The whole network; miniImageNet has 64 training classes."""
    return _build(True, num_classes)


def afl_net_no_attention(*, num_classes: int = 64) -> AFLNet:
    """Table 1's "w/o attention": the same branches and joins without the gates."""
    return _build(False, num_classes)


_PAPER = "Tang et al.: Task-Specific Few-Shot Image Classification, section 3 and table 1"

RECIPES = {"paper": replace(PAPER, objective="fusion"), "small": replace(SMALL, objective="fusion")}

ENTRIES = (
    ModelEntry(
        "afl-net",
        afl_net,
        DEPLOYMENT,
        _PAPER,
        "Apache-2.0",
        18_729_792,
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
        classifier=("classifier.",),
        recipes=RECIPES,
    ),
)
