"""OSNet: omni-scale networks for person re-identification: x0.25, and x0.5 with instance norms (0.2, 0.6 M parameters).

Paper: Zhou, Yang, Cavallaro, Xiang, "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019. ``osnet-in``
has instance norm of the image and of the stem's maps, which takes off what differs between cameras (the same authors,
"Learning Generalisable Omni-Scale Representations for Person Re-Identification", TPAMI 2021), and in every second block
the linear context transform as its gate (Ruan, Liang, Wang, Xu, Wang, Zhang, Zhu, "Linear Context Transform Block",
AAAI 2020).
Provenance: our own code, written from the papers. Parameters of ``osnet-x0-25`` bear the names of torchreid
(KaiyangZhou/deep-person-reid, MIT), so the state dicts published there load strictly. Structure and names of
``osnet-in-x0-5`` are those of Intel's person-reidentification-retail-0267 and -0287 (openvinotoolkit/open_model_zoo,
Apache-2.0), whose state dicts load strictly. Those weights are their authors' work, trained on research data; the
weights that ship began as OSNet x0.25's for MSMT17 and as 0287, and learned on (the recipe ``similarity``):
``edgevis/weights/osnet-x0-25.json`` and ``osnet-in-x0-5.json`` say from which teacher and which pictures.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgevis.layers import imagenet
from edgevis.models.allowed import CLASSES_OR_NONE
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe import ReIDFineTuningRecipe, ReIDRecipe
from edgevis.models.unlabelled_recipe import BlockwiseDistillationRecipe, SimilarityDistillationRecipe
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.errors import ModelError

EMBEDDING, EMBEDDING_IN = 512, 256
_GROUPS = 16


def osnet_deployment(embedding: int) -> Deployment:
    """The deployment of an OSNet whose embedding has that many values."""
    return Deployment(
        task="reid",
        graphs=(
            Graph(
                "embed",
                inputs=(TensorSpec("image", "float32", ("N", 3, 256, 128)),),
                outputs=(TensorSpec("embedding", "float32", ("N", embedding)),),
            ),
        ),
        preprocess=Preprocess(
            height=256,
            width=128,
            color="RGB",
            mean=imagenet.MEAN,
            std=imagenet.STD,
            fit="stretch",
            interpolation="linear",
        ),
    )


DEPLOYMENT = osnet_deployment(EMBEDDING)


class ConvBN(nn.Module):
    """Convolution without bias, batch norm and, unless ``relu=False``, ReLU; padding keeps the size at stride 1."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.relu(self.bn(self.conv(x)))
        return result


class LightConv3x3(nn.Module):
    """The paper's "Lite 3x3": a linear 1x1 convolution, a depthwise 3x3, batch norm, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv2(self.conv1(x))))


class ChannelGate(nn.Module):
    """The aggregation gate: weighs each channel by a two-layer network on its mean; one gate serves all streams."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.fc2(weight))


class OmniScaleBlock(nn.Module):
    """Four streams of one to four Lite 3x3 layers (receptive fields 3 to 9), gated, summed, with a residual.

    ``gate`` makes the gate of a number of channels.
    """

    def __init__(self, inputs: int, outputs: int, *, gate: Callable[[int], nn.Module] = ChannelGate) -> None:
        super().__init__()
        middle = outputs // 4
        self.conv1 = ConvBN(inputs, middle)
        self.conv2a = LightConv3x3(middle)
        self.conv2b = nn.Sequential(*(LightConv3x3(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LightConv3x3(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LightConv3x3(middle) for _ in range(4)))
        self.gate = gate(middle)
        self.conv3 = ConvBN(middle, outputs, relu=False)
        self.downsample = ConvBN(inputs, outputs, relu=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)
        streams = (self.conv2a(x), self.conv2b(x), self.conv2c(x), self.conv2d(x))
        gated = self.gate(streams[0]) + self.gate(streams[1]) + self.gate(streams[2]) + self.gate(streams[3])
        return torch.relu(self.conv3(gated) + shortcut)


class PersonEncoder(nn.Module):
    """An embedding of persons, and in training a classifier of its identities, which no graph contains."""

    def __init__(self, embedding: int, num_identities: int) -> None:
        super().__init__()
        CLASSES_OR_NONE.require("num_identities", num_identities)
        self.classifier = nn.Linear(embedding, num_identities) if num_identities else None

    def embed(self, image: Tensor) -> Tensor:
        """From image (N, 3, 256, 128) float32 to embedding (N, d) float32."""
        raise NotImplementedError

    def branches(self, image: Tensor) -> tuple[Tensor, ...]:
        """The embedding alone: :class:`edgevis.losses.ReIDLoss` takes a tuple of such."""
        return (self.embed(image),)

    def logits(self, branches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs of :meth:`branches` -> (N, num_identities).

        Raises:
            ModelError: The model was built without a classifier.
        """
        if self.classifier is None:
            raise ModelError(f"this {type(self).__name__} has no classifier; create it with num_identities=…")
        return (self.classifier(branches[0]),)

    def pooled(self, image: Tensor) -> Tensor:
        """From image (N, 3, 256, 128) float32 to the input (N, C) float32 of ``fc``, the layer of the embedding.

        Raises:
            ModelError: The model has no such layer.
        """
        raise ModelError(f"a {type(self).__name__} has no layer of the embedding alone")

    def forward(self, image: Tensor) -> Tensor:
        """The same as :meth:`embed`."""
        return self.embed(image)

    def initialise(self) -> None:
        """Random weights, as torchreid draws them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)


class OSNet(PersonEncoder):
    """OSNet with channels (stem, stage 2, stage 3, stage 4).

    Input: image (N, 3, 256, 128) float32, RGB, ImageNet mean and standard deviation, the person's box stretched to
    that size. Output: embedding (N, 512) float32, >= 0, rows not normalised: the runtime L2-normalises them.
    """

    def __init__(self, channels: tuple[int, int, int, int], *, num_identities: int = 0) -> None:
        super().__init__(EMBEDDING, num_identities)
        stem, second, third, fourth = channels
        self.conv1 = ConvBN(3, stem, kernel=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(stem, second)
        self.conv3 = _stage(second, third)
        self.conv4 = nn.Sequential(OmniScaleBlock(third, fourth), OmniScaleBlock(fourth, fourth))
        self.conv5 = ConvBN(fourth, fourth)
        self.fc = nn.Sequential(nn.Linear(fourth, EMBEDDING), nn.BatchNorm1d(EMBEDDING), nn.ReLU())
        self.initialise()

    def embed(self, image: Tensor) -> Tensor:
        """From image (N, 3, 256, 128) float32 to embedding (N, 512) float32."""
        embedding: Tensor = self.fc(self.pooled(image))
        return embedding

    def pooled(self, image: Tensor) -> Tensor:
        """From image (N, 3, 256, 128) float32 to the means (N, C) float32 of the last map."""
        x = self.conv2(self.maxpool(self.conv1(image)))
        x = self.conv5(self.conv4(self.conv3(x)))
        means: Tensor = x.mean((2, 3))
        return means

    def blocks(self) -> list[nn.Module]:
        """The modules that make the maps one after another: stem, blocks, transitions and the last convolution."""
        stem = nn.Sequential(self.conv1, self.maxpool)
        return [stem, *self.conv2, *self.conv3, *self.conv4, self.conv5]

    def values(self, last_map: Tensor) -> Tensor:
        """From the last block's map (N, C, h, w) to the embedding before its ReLU (N, 512), which may be negative."""
        embedding: Tensor = self.fc[1](self.fc[0](last_map.mean((2, 3))))
        return embedding

    def output_scales(self) -> list[list[nn.Parameter]]:
        """The scales of the batch norms that end each of :meth:`blocks`, and at last those of :meth:`values`.

        A block of four streams ends in two: of the streams' sum, and of the shortcut.
        """
        ends = ("0.bn.weight", "bn.weight", "conv3.bn.weight", "downsample.bn.weight")
        scales = [[scale for name, scale in block.named_parameters() if name in ends] for block in self.blocks()]
        return [*scales, [self.fc.get_parameter("1.weight")]]


class LinearContextGate(nn.Module):
    """The linear context transform: weighs each channel by its mean, normalised within its group of channels.

    A group has two to four channels, so that a rounding error of a mean is magnified. In float16 and int8 graphs all
    from the mean to the sigmoid stays float32. OpenVINO 2026.4 in BF16 rounds it, too, and is none the worse for it:
    with the published weights its embeddings have cosines of 0.9993 to 0.9998 to float32's, and so they have where the
    convolutions alone are rounded.
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
        super().__init__(EMBEDDING_IN, num_identities)
        stem, second, third, fourth = channels
        self.in_first = nn.InstanceNorm2d(3, affine=True)
        self.conv1 = ConvIN(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(*_blocks_in(stem, second), _transition(second))
        self.conv3 = nn.Sequential(*_blocks_in(second, third), _transition(third))
        self.conv4 = nn.Sequential(*_blocks_in(third, fourth))
        self.conv5 = ConvBN(fourth, fourth)
        # One trained weight for each place of each channel.
        self.global_avgpool = nn.Conv2d(fourth, fourth, (16, 8), groups=fourth)
        self.fc = nn.Sequential(nn.Linear(fourth, EMBEDDING_IN), nn.BatchNorm1d(EMBEDDING_IN), nn.PReLU())
        self.initialise()
        nn.init.constant_(self.global_avgpool.weight, 1 / (16 * 8))

    def embed(self, image: Tensor) -> Tensor:
        """From image (N, 3, 256, 128) float32 to embedding (N, 256) float32."""
        embedding: Tensor = self.fc(self.pooled(image))
        return embedding

    def pooled(self, image: Tensor) -> Tensor:
        """From image (N, 3, 256, 128) float32 to the weighted means (N, C) float32 of the last map."""
        x = self.conv2(self.maxpool(self.conv1(self.in_first(image))))
        x = self.global_avgpool(self.conv5(self.conv4(self.conv3(x))))
        means: Tensor = x.flatten(1)
        return means


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    """Two blocks and a transition."""
    return nn.Sequential(OmniScaleBlock(inputs, outputs), OmniScaleBlock(outputs, outputs), _transition(outputs))


def _blocks_in(inputs: int, outputs: int) -> tuple[OmniScaleBlock, OmniScaleBlock]:
    return OmniScaleBlock(inputs, outputs), OmniScaleBlock(outputs, outputs, gate=LinearContextGate)


def _transition(channels: int) -> nn.Sequential:
    """Halves height and width."""
    return nn.Sequential(ConvBN(channels, channels), nn.AvgPool2d(2))


def osnet_in_x0_5(*, num_identities: int = 0) -> OSNetIN:
    """The published network; ``num_identities`` > 0 adds a ``classifier`` for training."""
    return OSNetIN((32, 128, 192, 256), num_identities=num_identities)


def osnet_x0_25(*, num_identities: int = 0) -> OSNet:
    """OSNet with a quarter of the channels; ``num_identities`` > 0 adds a ``classifier`` for training."""
    return OSNet((16, 64, 96, 128), num_identities=num_identities)


# The paper trains 250 epochs from nothing on larger data; this is for fine-tuning the published or shipped weights.
_SMALL = ReIDRecipe(
    epochs=30,
    optimizer="adamw",
    learning_rate=1e-3,
    weight_decay=1e-4,
    schedule="cosine",
    warm_up_epochs=2,
    identities=8,
    triplet_weight=1.0,
    triplet_epochs=0,
    jitter=0.2,
)

# From a random start, taught by the published weights block by block; the warm-up is a whole epoch.
_DISTILL = BlockwiseDistillationRecipe(
    epochs=28,
    steps_per_epoch=60,
    optimizer="adamw",
    learning_rate=8e-3,
    weight_decay=1e-4,
    decay_vectors=False,
    schedule="cosine",
    warm_up_epochs=1,
    warm_up_from=0.02,
    clip_norm=5.0,
)

_SMALL_IN = replace(_SMALL, learning_rate=3e-4)

# From weights that know persons to those of some hundred pictures, in minutes: batch norms and the stem stay.
_QUICK = ReIDFineTuningRecipe(
    epochs=5,
    optimizer="adamw",
    learning_rate=1e-4,
    weight_decay=1e-4,
    schedule="cosine",
    warm_up_epochs=1,
    identities=8,
    triplet_weight=1.0,
    triplet_epochs=0,
    held_out=0.2,
    jitter=0.2,
    frozen_norms=True,
    ema_decay=0.95,
)

# How the published weights, or those that ship, learn from a larger network, whatever its blocks: no farther from where
# they began than some hundred persons bear out.
_SIMILARITY = SimilarityDistillationRecipe(
    epochs=5,
    steps_per_epoch=32,
    optimizer="adamw",
    learning_rate=3e-4,
    adam_beta2=0.99,
    weight_decay=1e-4,
    decay_vectors=False,
    schedule="cosine",
    warm_up_epochs=1,
    clip_norm=5.0,
    ema_decay=0.98,
    frozen_norms=True,
    views=4096,
    fitted_views=2048,
    harder=True,
    anchor_weight=1.0,
)

# The student is as large as its teacher and no worse: both are right, where they differ.
_SIMILARITY_IN = replace(
    _SIMILARITY,
    epochs=1,
    steps_per_epoch=16,
    learning_rate=3e-5,
    warm_up_epochs=0,
    views=1024,
    own_share=0.5,
    frozen=("in_first", "conv1", "conv2", "conv3"),
)

ENTRIES = (
    ModelEntry(
        name="osnet-x0-25",
        build=osnet_x0_25,
        deployment=DEPLOYMENT,
        paper="Zhou, Yang, Cavallaro, Xiang: Omni-Scale Feature Learning for Person Re-Identification, ICCV 2019",
        licence="Apache-2.0",
        parameters=201_864,
        weights="osnet-x0-25.safetensors",
        classifier=("classifier.",),
        recipes={"small": _SMALL, "quick": _QUICK, "distill": _DISTILL, "similarity": _SIMILARITY},
    ),
    ModelEntry(
        name="osnet-in-x0-5",
        build=osnet_in_x0_5,
        deployment=osnet_deployment(EMBEDDING_IN),
        paper="Zhou, Yang, Cavallaro, Xiang: Omni-Scale Feature Learning for Person Re-Identification, ICCV 2019",
        licence="Apache-2.0",
        parameters=595_968,
        weights="osnet-in-x0-5.safetensors",
        classifier=("classifier.",),
        recipes={"small": _SMALL_IN, "quick": _QUICK, "similarity": _SIMILARITY_IN},
    ),
)
