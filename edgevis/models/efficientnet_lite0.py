"""EfficientNet-Lite0: an encoder for few-shot classification by prototypes, 4.7 million parameters.

Paper: Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; Lite0 is the
same authors' form of it for integer hardware, without squeeze-and-excitation and with ReLU6 (2020, tensorflow/tpu).
Provenance: our own code; parameters bear the names of timm's ``tf_efficientnet_lite0`` (huggingface/
pytorch-image-models, Apache-2.0), padding and batch norms' eps are TensorFlow's, so the ImageNet-1k weights published
there load strictly.
Licence: this file, as the rest of edgevis. Weights with a projection of our own ship;
``edgevis/weights/efficientnet-lite0.json`` says from which pictures it learned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from edgevis.layers.efficientnet import HEAD_CHANNELS, LITE_MEAN, LITE_STD, STAGE_CHANNELS, EfficientNetB0
from edgevis.models._encoder import SIDE, check_options, deployment, preprocess
from edgevis.models.allowed import whole
from edgevis.models.entry import ModelEntry
from edgevis.models.mobilenetv2 import SMALL
from edgevis.models.recipe_projection import ProjectionRecipe
from runtime.bundle.spec import Deployment

PREPROCESS = preprocess(mean=LITE_MEAN, std=LITE_STD)

# With 2,048 outputs the projection alone would be as large as all the rest.
WIDTHS = whole(0, 2048)
PERCENT = whole(1, 100)

_FIRST_PART = 3
PARTS = (*STAGE_CHANNELS[_FIRST_PART:], HEAD_CHANNELS)
"""What a projection sees: the means of the maps of the last four stages and of the head."""


def _deployment(side: int, embedding: int = 0, *, rooted: bool = False) -> Deployment:
    # A root is steep near 0, where a rounded projection would be far off.
    return deployment(replace(PREPROCESS, height=side, width=side), embedding or HEAD_CHANNELS, float32=rooted)


DEPLOYMENT = _deployment(SIDE)


class EfficientNetLite0(EfficientNetB0):
    """EfficientNet-Lite0.

    Input: image (N, 3, side, side) float32, RGB, (x - 127) / 128 of 0..255. Output of :meth:`encode`: embedding
    (N, D) float32, rows not normalised: the runtime L2-normalises them. Output of ``forward``: logits
    (N, num_classes), with the published weights in ImageNet-1k's order.

    Args:
        num_classes: Outputs of the classifier, which only ``forward`` uses; 0 leaves it out.
        side: Of the images, a multiple of 32; 224 as published. No parameter depends on it.
        embedding: D, the outputs of a linear projection of what :meth:`pooled` gives, which few-shot training learns;
            0 leaves it out, and the embedding is the published network's pooled vector, D = 1280, 0..6.
        power_percent: 100 p: each output x of the projection becomes sign(x) |x|^p, so that a few large ones do not
            outweigh the rest in a cosine (power normalisation: Perronnin, Sanchez, Mensink, "Improving the Fisher
            Kernel for Large-Scale Image Classification", ECCV 2010). It is stored with the projection's weights, as a
            buffer, so that their digest says it, too; without a projection there is none.
    """

    power: Tensor | None

    def __init__(
        self, *, num_classes: int = 1000, side: int = SIDE, embedding: int = 0, power_percent: int = 100
    ) -> None:
        super().__init__(num_classes=num_classes, lite=True, tensorflow=True)
        self.side = side
        self.projection = nn.Linear(sum(PARTS), embedding) if embedding else None
        self.register_buffer(
            "power", None if power_percent == 100 or not embedding else torch.tensor(power_percent / 100)
        )

    def pooled(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to what is projected, (N, 1984) float32; :data:`PARTS` are its parts.

        Without a projection it is the last part alone, (N, 1280), 0..6.
        """
        x = self.stem(image)
        parts: list[Tensor] = []
        for place, stage in enumerate(self.blocks):
            x = stage(x)
            if self.projection is not None and place >= _FIRST_PART:
                parts.append(x.mean((2, 3)))
        return torch.cat((*parts, self.head(x).mean((2, 3))), dim=1)

    def encode(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to embedding (N, D) float32."""
        return self.projected(self.pooled(image))

    def projected(self, pooled: Tensor) -> Tensor:
        """From what :meth:`pooled` gives, (N, 1984) or (N, 1280) float32, to embedding (N, D) float32."""
        if self.projection is None:
            return pooled
        values: Tensor = self.projection(pooled)
        return values if self.power is None else values.sign() * values.abs() ** self.power


def efficientnet_lite0(
    *, num_classes: int = 1000, side: int = SIDE, embedding: int = 0, power_percent: int = 100
) -> EfficientNetLite0:
    """EfficientNet-Lite0 for images of ``side`` x ``side``, with a classifier of ``num_classes`` outputs."""
    check_options(num_classes=num_classes, side=side)
    WIDTHS.require("embedding", embedding)
    PERCENT.require("power_percent", power_percent)
    return EfficientNetLite0(num_classes=num_classes, side=side, embedding=embedding, power_percent=power_percent)


def _deploy(module: nn.Module) -> Deployment:
    encoder = cast(EfficientNetLite0, module)
    embedding = 0 if encoder.projection is None else encoder.projection.out_features
    return _deployment(encoder.side, embedding, rooted=encoder.power is not None)


# From published weights; the values were chosen by half of the validation classes of Grocery and of Caltech-101.
GENERAL = ProjectionRecipe(
    loss="projection",
    epochs=4,
    steps_per_epoch=50,
    optimizer="adamw",
    learning_rate=1.2e-5,
    schedule="cosine",
    warm_up_epochs=1,
    whiten=True,
    dropout=0.5,
    share=0.4,
    dimension=640,
    way=24,
    shot=1,
    query=3,
    scale=16.0,
    frozen=("conv_stem", "bn1", "blocks", "conv_head", "bn2"),
)

# From the weights that ship, or others with such a projection: some hundred pictures in minutes.
QUICK = replace(GENERAL, whiten=False, steps_per_epoch=25, way=16, held_out=0.25, test_episodes=400)

ENTRIES = (
    ModelEntry(
        name="efficientnet-lite0",
        build=efficientnet_lite0,
        deployment=DEPLOYMENT,
        paper="Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019",
        licence="Apache-2.0",
        parameters=4_652_008,
        weights="efficientnet-lite0.safetensors",
        deploy=_deploy,
        classifier=("classifier.",),
        added=("projection.", "power"),
        recipes={"small": SMALL, "general": GENERAL, "quick": QUICK},
    ),
)
