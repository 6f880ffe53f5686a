"""RegNet X and Y: encoders for few-shot classification by prototypes, 2.7 to 7.3 million parameters.

Paper: Radosavovic, Kosaraju, Girshick, He, Dollár, "Designing Network Design Spaces", CVPR 2020.
Provenance: our own code, see :mod:`edgevis.layers.regnet`; weights that timm publishes load strictly. None ship.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from edgevis.layers.regnet import RegNet
from edgevis.models._encoder import SIDE, check_options, deployment, preprocess
from edgevis.models.entry import ModelEntry, PaperCount
from edgevis.models.mobilenetv2 import SMALL
from runtime.bundle.spec import Deployment

VARIANT = "regnetx_004"


class RegNetEncoder(RegNet):
    """A RegNet whose pooled vector is the embedding.

    Input: image (N, 3, side, side) float32 RGB, ImageNet mean and standard deviation. Output of :meth:`encode`:
    embedding (N, D) float32, >= 0, rows not normalised: the runtime L2-normalises them; D is the last of ``channels``,
    368 to 784. Output of ``forward``: logits (N, num_classes).

    Args:
        variant: One of :data:`edgevis.layers.regnet.DESIGNS`.
        num_classes: Outputs of the classifier, which only ``forward`` uses; 0 leaves it out.
        side: Of the images, a multiple of 32. No parameter depends on it.

    Raises:
        ModelError: An option is not as described.
    """

    def __init__(self, *, variant: str = VARIANT, num_classes: int = 1000, side: int = SIDE) -> None:
        check_options(num_classes=num_classes, side=side)
        super().__init__(variant, num_classes=num_classes)
        self.side = side

    @property
    def classifier(self) -> nn.Module:
        """From embedding (N, D) to logits (N, num_classes): timm's ``head``."""
        return self.head

    def encode(self, image: Tensor) -> Tensor:
        """From image (N, 3, side, side) float32 to embedding (N, D) float32."""
        return self.pooled(image)


def _deploy(module: nn.Module) -> Deployment:
    encoder = cast(RegNetEncoder, module)
    return deployment(preprocess(encoder.side), encoder.channels[-1])


DEPLOYMENT = deployment(preprocess(), 384)

ENTRIES = (
    ModelEntry(
        name="regnet",
        build=RegNetEncoder,
        deployment=DEPLOYMENT,
        paper="Radosavovic, Kosaraju, Girshick, He, Dollár: Designing Network Design Spaces, CVPR 2020",
        licence="Apache-2.0",
        parameters=5_157_512,
        deploy=_deploy,
        classifier=("head.fc.",),
        printed=PaperCount("5.2 M", 5_200_000, "total", "the authors' repository"),
        recipes={"small": SMALL},
    ),
)
