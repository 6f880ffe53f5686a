"""MobileNetV2 1.0: the small encoder for few-shot classification by prototypes, 3.5 million parameters.

Paper: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
Provenance: our own code; parameters bear the names of timm's ``mobilenetv2_100`` (huggingface/pytorch-image-models,
Apache-2.0) and padding is TensorFlow's (timm's ``pad_type="same"``), so weights made by TensorFlow load strictly and
mean what they meant there. Such weights (google-coral/test_data, Apache-2.0, ImageNet-1k) are the reference; none
ship.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from edgevis.layers.mbconv import initialise
from edgevis.layers.mobilenetv2 import CHANNELS, stages, stem
from edgevis.models._encoder import SIDE, check_options, deployment, deployment_by_side, preprocess
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe import EpisodeRecipe

EMBEDDING = 1280

PREPROCESS = preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

DEPLOYMENT = deployment(PREPROCESS, EMBEDDING)


class MobileNetV2(nn.Module):
    """MobileNetV2 with width 1.

    Input: image (N, 3, side, side) float32, RGB, -1 .. 1 (mean = std = 0.5). Output of :meth:`encode`: embedding
    (N, 1280) float32, >= 0, the pooled vector before the classifier, rows not normalised: the runtime L2-normalises
    them. Output of ``forward``: logits (N, num_classes), or that vector where there is no classifier.

    Args:
        num_classes: Outputs of the classifier, which only ``forward`` uses; 0 leaves it out.
        side: Of the images, a multiple of 32; 224 as published. No parameter depends on it.

    Attributes:
        same: Whether it pads as TensorFlow does, as weights that it made need.

    Raises:
        ModelError: An option is not as described.
    """

    same: ClassVar[bool] = True

    def __init__(self, *, num_classes: int = 1000, side: int = SIDE) -> None:
        check_options(num_classes=num_classes, side=side)
        super().__init__()
        self.side = side
        self.conv_stem, self.bn1, self.act1 = stem(same=self.same)
        self.blocks = stages(same=self.same)
        self.conv_head: nn.Module = nn.Conv2d(CHANNELS, EMBEDDING, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(EMBEDDING)
        self.act2 = nn.ReLU6()
        self.classifier = nn.Linear(EMBEDDING, num_classes) if num_classes else nn.Identity()
        initialise(self)

    def encode(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to embedding (N, 1280) float32."""
        x = self.blocks(self.act1(self.bn1(self.conv_stem(image))))
        x = self.act2(self.bn2(self.conv_head(x)))
        embedding: Tensor = x.mean((2, 3))
        return embedding

    def forward(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to logits (N, num_classes) float32.

        With the published weights they are in ImageNet-1k's order.
        """
        result: Tensor = self.classifier(self.encode(image))
        return result


# Fine-tuning of the published weights; the paper of the network has no few-shot training.
SMALL = EpisodeRecipe(
    loss="local",
    epochs=10,
    steps_per_epoch=40,
    optimizer="adamw",
    learning_rate=1e-4,
    weight_decay=1e-4,
    schedule="cosine",
    warm_up_epochs=1,
    query=5,
    episodes_per_step=2,
)

ENTRIES = (
    ModelEntry(
        name="mobilenetv2",
        build=MobileNetV2,
        deployment=DEPLOYMENT,
        paper="Sandler et al.: MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018",
        licence="Apache-2.0",
        parameters=3_504_872,
        deploy=deployment_by_side(PREPROCESS, EMBEDDING),
        classifier=("classifier.",),
        recipes={"small": SMALL},
    ),
)
