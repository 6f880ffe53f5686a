"""GhostNet 1.0: a small encoder for few-shot classification by prototypes, 5.2 million parameters.

Paper: Han, Wang, Tian, Guo, Xu, Xu, "GhostNet: More Features from Cheap Operations", CVPR 2020.
Provenance: our own code, see :mod:`edgevis.layers.ghostnet`; the weights that timm publishes load strictly. None ship.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from torch import Tensor

from edgevis.layers.ghostnet import EMBEDDING, GhostNet
from edgevis.models._encoder import SIDE, check_options, deployment, deployment_by_side, preprocess
from edgevis.models.entry import ModelEntry, PaperCount
from edgevis.models.mobilenetv2 import SMALL


class GhostNetEncoder(GhostNet):
    """A GhostNet whose vector before the classifier is the embedding.

    Input: image (N, 3, side, side) float32 RGB, ImageNet mean and standard deviation. Output of :meth:`encode`:
    embedding (N, 1280) float32, >= 0, rows not normalised: the runtime L2-normalises them. Output of ``forward``:
    logits (N, num_classes).

    Args:
        num_classes: Outputs of the classifier, which only ``forward`` uses; 0 leaves it out.
        side: Of the images, a multiple of 32. No parameter depends on it.

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(self, *, num_classes: int = 1000, side: int = SIDE) -> None:
        check_options(num_classes=num_classes, side=side)
        super().__init__(num_classes=num_classes)
        self.side = side

    def encode(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to embedding (N, 1280) float32."""
        return self.pooled(image)


PREPROCESS = preprocess()

DEPLOYMENT = deployment(PREPROCESS, EMBEDDING)

ENTRIES = (
    ModelEntry(
        name="ghostnet",
        build=GhostNetEncoder,
        deployment=DEPLOYMENT,
        paper="Han, Wang, Tian, Guo, Xu, Xu: GhostNet: More Features from Cheap Operations, CVPR 2020",
        licence="Apache-2.0",
        parameters=5_182_508,
        deploy=deployment_by_side(PREPROCESS, EMBEDDING),
        classifier=("classifier.",),
        printed=PaperCount("5.2 M", 5_200_000, "total", "table 6"),
        recipes={"small": SMALL},
    ),
)
