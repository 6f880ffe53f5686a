"""OSNet x0.5 with instance norms and normalised gates, for person re-identification: 0.6 million parameters.

Paper: Zhou, Yang, Cavallaro, Xiang, "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019. Instance
norm of the image and of the stem's maps takes off what differs between cameras (Zhou, Yang, Cavallaro, Xiang, "Learning
Generalisable Omni-Scale Representations for Person Re-Identification", TPAMI 2021); the gate of every second block is
the linear context transform of Ruan, Liang, Wang, Xu, Wang, Zhang, Zhu, "Linear Context Transform Block", AAAI 2020.
Provenance: our own code; structure and parameters' names are those of Intel's person-reidentification-retail-0267 and
-0287 (openvinotoolkit/open_model_zoo, Apache-2.0), whose state dicts load strictly.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevis.models.entry import ModelEntry
from edgevis.models.osnet import SIMILARITY, ConvBN, OmniScaleBlock, PersonEncoder, osnet_deployment
from edgevis.models.recipe import ReIDRecipe

EMBEDDING = 256
_GROUPS = 16


class LinearContextGate(nn.Module):
    """The linear context transform: weighs each channel by its mean, normalised within its group of channels.

    A group has two to four channels: a rounding error of a mean is magnified by the distance between them. So every
    engine pools and normalises in float32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gn(x.mean((2, 3), keepdim=True)))


class ConvIN(nn.Module):
    """The stem: a 7x7 convolution with stride 2 and without bias, instance norm, ReLU."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, outputs, 7, stride=2, padding=3, bias=False)
        self.bn = nn.InstanceNorm2d(outputs, affine=True)  # the published name

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class OSNetIN(PersonEncoder):
    """OSNet with channels (stem, stage 2, stage 3, stage 4), instance norms and two kinds of gates.

    Input: image (N, 3, 256, 128) float32, RGB, ImageNet mean and standard deviation, the person's box stretched to
    that size. Output: embedding (N, 256) float32, rows not normalised: the runtime L2-normalises them.
    """

    def __init__(self, channels: tuple[int, int, int, int], *, num_identities: int = 0) -> None:
        super().__init__(EMBEDDING, num_identities)
        stem, second, third, fourth = channels
        self.in_first = nn.InstanceNorm2d(3, affine=True)
        self.conv1 = ConvIN(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(*_blocks(stem, second), _transition(second))
        self.conv3 = nn.Sequential(*_blocks(second, third), _transition(third))
        self.conv4 = nn.Sequential(*_blocks(third, fourth))
        self.conv5 = ConvBN(fourth, fourth)
        # One trained weight for each place of each channel.
        self.global_avgpool = nn.Conv2d(fourth, fourth, (16, 8), groups=fourth)
        self.fc = nn.Sequential(nn.Linear(fourth, EMBEDDING), nn.BatchNorm1d(EMBEDDING), nn.PReLU())
        self.initialise()
        nn.init.constant_(self.global_avgpool.weight, 1 / (16 * 8))

    def embed(self, image: Tensor) -> Tensor:
        """From image (N, 3, 256, 128) float32 to embedding (N, 256) float32."""
        x = self.conv2(self.maxpool(self.conv1(self.in_first(image))))
        x = self.global_avgpool(self.conv5(self.conv4(self.conv3(x))))
        embedding: Tensor = self.fc(x.flatten(1))
        return embedding


def _blocks(inputs: int, outputs: int) -> tuple[OmniScaleBlock, OmniScaleBlock]:
    return OmniScaleBlock(inputs, outputs), OmniScaleBlock(outputs, outputs, gate=LinearContextGate)


def _transition(channels: int) -> nn.Sequential:
    """Halves height and width."""
    return nn.Sequential(ConvBN(channels, channels), nn.AvgPool2d(2))


def osnet_in_x0_5(*, num_identities: int = 0) -> OSNetIN:
    """The published network; ``num_identities`` > 0 adds a ``classifier`` for training."""
    return OSNetIN((32, 128, 192, 256), num_identities=num_identities)


# For fine-tuning published weights.
_SMALL = ReIDRecipe(
    epochs=30,
    optimizer="adamw",
    learning_rate=3e-4,
    weight_decay=1e-4,
    schedule="cosine",
    warm_up_epochs=2,
    identities=8,
    triplet_weight=1.0,
    triplet_epochs=0,
    jitter=0.2,
)

ENTRIES = (
    ModelEntry(
        name="osnet-in-x0-5",
        build=osnet_in_x0_5,
        deployment=osnet_deployment(EMBEDDING),
        paper="Zhou, Yang, Cavallaro, Xiang: Omni-Scale Feature Learning for Person Re-Identification, ICCV 2019",
        licence="Apache-2.0",
        parameters=595_968,
        classifier=("classifier.",),
        recipes={"small": _SMALL, "similarity": SIMILARITY},
    ),
)
