"""ResNet-12 for few-shot classification by prototypes: the *Global* and *Local* baselines of the fusion paper.

Papers: Tang, Xia, Chen, Du, Wang, "Task-Specific Few-Shot Image Classification by Balancing Sample-Level and
Class-Level Generalization", section 4.1 and table 1; Chen et al., "Meta-Baseline", ICCV 2021 (the network's form).
The two baselines are one network trained in two ways: *Global* with a linear classifier over all training classes,
*Local* in episodes with :class:`edgevis.losses.CosineEpisodeLoss`.
Provenance: our own code; see :mod:`edgevis.layers.resnet12` for the parameters' names.
Licence: this file, as the rest of edgevis. No weights ship: they must be trained.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from edgevis.layers.resnet12 import CHANNELS, ResNet12
from edgevis.models._encoder import deployment, preprocess
from edgevis.models.allowed import CLASSES_OR_NONE
from edgevis.models.entry import ModelEntry
from edgevis.models.recipe import EpisodeRecipe

EMBEDDING = CHANNELS[3]

# miniImageNet's images are 84 x 84 already and the paper says no more. The mean and standard deviation, and how images
# of other sizes are fitted (the short side resized, the centre cut), are those of Meta-Baseline, on which it builds.
PREPROCESS = preprocess(84)

DEPLOYMENT = deployment(PREPROCESS, EMBEDDING)


class FewShotResNet12(ResNet12):
    """ResNet-12 with an embedding and, where training needs it, a classifier.

    Input: image (N, 3, 84, 84) float32, RGB, ImageNet mean and standard deviation. Output of :meth:`encode`: embedding
    (N, 512) float32, the mean of the last map, rows not normalised: the runtime L2-normalises them.

    Args:
        num_classes: Training classes of the linear classifier; 0 builds none.
    """

    def __init__(self, *, num_classes: int = 0) -> None:
        super().__init__()
        self.classifier = nn.Linear(EMBEDDING, num_classes) if num_classes else None

    def encode(self, image: Tensor) -> Tensor:
        """From image (N, 3, 84, 84) float32 to embedding (N, 512) float32."""
        return super().forward(image)

    def forward(self, image: Tensor) -> Tensor:
        """From image (N, 3, 84, 84) float32 to logits (N, num_classes); without a classifier to :meth:`encode`'s."""
        embedding = self.encode(image)
        if self.classifier is None:
            return embedding
        logits: Tensor = self.classifier(embedding)
        return logits


def resnet12(*, num_classes: int = 0) -> FewShotResNet12:
    """ResNet-12, with a linear classifier of ``num_classes`` outputs if that is not 0."""
    CLASSES_OR_NONE.require("num_classes", num_classes)
    return FewShotResNet12(num_classes=num_classes)


# Section 4 (implementation details). What it leaves open is Meta-Baseline's: 5-way, 1 shot, 15 queries, and its
# augmentation. The Local rows of table 1 train with loss=local, the Global ones with loss=global.
PAPER = EpisodeRecipe(
    loss="global",
    epochs=100,
    steps_per_epoch=200,
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="step",
    milestones=(60, 90),
    episodes_per_step=4,
    test_episodes=8000,
)
SMALL = replace(
    PAPER,
    epochs=20,
    steps_per_epoch=40,
    learning_rate=0.05,
    schedule="cosine",
    milestones=(),
    warm_up_epochs=1,
    query=5,
    episodes_per_step=2,
    clip_norm=5.0,
    test_episodes=1000,
)

ENTRIES = (
    ModelEntry(
        name="resnet12",
        build=resnet12,
        deployment=DEPLOYMENT,
        paper="Tang et al.: Task-Specific Few-Shot Image Classification, table 1 (Global, Local)",
        licence="Apache-2.0",
        parameters=7_996_800,
        classifier=("classifier.",),
        recipes={"paper": PAPER, "small": SMALL},
    ),
)
