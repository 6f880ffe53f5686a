"""EfficientNet-b0: an encoder for few-shot classification by prototypes, 5.3 million parameters.

Paper: Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019.
Provenance: our own code, see :mod:`edgevis.layers.efficientnet`; the weights that timm publishes as ``efficientnet_b0``
load strictly. None ship.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from torch import Tensor

from edgevis.layers.efficientnet import HEAD_CHANNELS, EfficientNetB0
from edgevis.models._encoder import SIDE, check_options, deployment, deployment_by_side, preprocess
from edgevis.models.entry import ModelEntry, PaperCount
from edgevis.models.mobilenetv2 import SMALL


class EfficientNetB0Encoder(EfficientNetB0):
    """An EfficientNet-b0 whose vector before the classifier is the embedding.

    Input: image (N, 3, side, side) float32 RGB, ImageNet mean and standard deviation. Output of :meth:`encode`:
    embedding (N, 1280) float32, above -0.28, rows not normalised: the runtime L2-normalises them. Output of
    ``forward``: logits (N, num_classes).

    Args:
        num_classes: Outputs of the classifier, which only ``forward`` uses; 0 leaves it out.
        side: Of the images, a multiple of 32; 224 as published. No parameter depends on it.

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(self, *, num_classes: int = 1000, side: int = SIDE) -> None:
        check_options(num_classes=num_classes, side=side)
        super().__init__(num_classes=num_classes)
        self.side = side

    def encode(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to embedding (N, 1280) float32."""
        return self.pooled_head(image)


PREPROCESS = preprocess()

DEPLOYMENT = deployment(PREPROCESS, HEAD_CHANNELS)

ENTRIES = (
    ModelEntry(
        name="efficientnet-b0",
        build=EfficientNetB0Encoder,
        deployment=DEPLOYMENT,
        paper="Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019",
        licence="Apache-2.0",
        parameters=5_288_548,
        deploy=deployment_by_side(PREPROCESS, HEAD_CHANNELS),
        classifier=("classifier.",),
        printed=PaperCount("5.3 M", 5_300_000, "total", "table 2"),
        recipes={"small": SMALL},
    ),
)
