"""The training recipes of the tasks ``detect`` and ``instance_segment``; see :mod:`edgevis.models.recipe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgevis.models.allowed import TEXT, Allowed, number, several, whole
from edgevis.models.recipe import Recipe, known_losses

_MOST = 1_000_000_000


def _ordered_pair(values: Sequence[float]) -> bool:
    return len(values) == 2 and values[0] <= values[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRecipe(Recipe):
    """The fields of recipes that learn to find objects.

    Attributes:
        batch: Images.
        classes: Names of the classes to learn, separated by commas; empty for all that the data have.
        where: ``column=value``: the rows of ``index.csv`` that may train, such as ``commercial_ok=1``; empty for all.
        held_out: The share of the training images that only validates, where the data have no split for it.
        scale: The least and the largest factor by which an image is scaled beyond fitting the input; what is larger
            then is cropped at random.
        flip: Whether images are mirrored half the time.
        jitter: Strength of the change of brightness, contrast and saturation, 0..1.
        visible: The least share of an object's area that a crop must leave of it; what is less is not learned.
    """

    batch: int = 16
    classes: str = ""
    where: str = ""
    held_out: float = 0.15
    scale: tuple[float, ...] = (0.5, 1.5)
    flip: bool = True
    jitter: float = 0.3
    visible: float = 0.2

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "batch": whole(1, _MOST),
        "classes": TEXT,
        "where": TEXT,
        "held_out": number(0, 1, below=True),
        "scale": several(number(0.01, 100), least=2, more=", the least and the largest", holds=_ordered_pair),
        "jitter": number(0, 1),
        "visible": number(0, 1),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionRecipe(ObjectRecipe):
    """Detection.

    Attributes:
        loss: ``yolox`` or ``efficientdet``, by the model's raw maps. One's own takes the raw rows, (B, A, 5 + C) of a
            YOLOX (box code, objectness, classes) or (B, A, 4 + C) of an EfficientDet (box code, classes), and the
            targets (M, 8): image, class, x1, y1, x2, y2 in pixels of the input, weight, ignored.
        assignment: Of ``efficientdet``: the anchors of a box by ``iou`` or by ``atss``.
        mosaic: How likely an image is put together of four.
        l1_epochs: The last epochs, in which ``yolox`` adds the L1 loss and no mosaic is made.
        pseudo_share: The share of each batch that is drawn from pseudo-labelled images, where there are any.
        pseudo_score: The least score of a pseudo-label that is learned as an object, with its score as weight.
        ignore_score: The least score of one that becomes an ignored region; below, it is dropped.
        degrade: How strongly pseudo-labelled images are degraded for the student: noise, blur, light, compression,
            erased parts; 0..1.
        distill: With a teacher, the weight of what its raw maps teach, see
            :class:`edgevis.losses.ObjectnessDistillationLoss`.
    """

    loss: str = "yolox"
    assignment: Literal["iou", "atss"] = "iou"
    mosaic: float = 0.0
    l1_epochs: int = 0
    pseudo_share: float = 0.5
    pseudo_score: float = 0.5
    ignore_score: float = 0.1
    degrade: float = 0.5
    distill: float = 1.0

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {
        "loss": known_losses("yolox", "efficientdet"),
        "mosaic": number(0, 1),
        "l1_epochs": whole(0, _MOST),
        "pseudo_share": number(0, 1),
        "pseudo_score": number(0, 1),
        "ignore_score": number(0, 1),
        "degrade": number(0, 1),
        "distill": number(0, 1e6, above=True),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecipe(ObjectRecipe):
    """Instance segmentation by outlines.

    Attributes:
        loss: ``polarmask``. One's own takes the raw rows (B, P, 41 + C) and the targets (B, P, 41), see
            :class:`edgevis.losses.PolarMaskLoss`.
        rays: What ends the rays that are learned: ``pixels`` of the contour, as the paper's code has it, or the
            ``edges`` between them, see :data:`edgevis.data.polar_targets.RayEnds`.
    """

    loss: str = "polarmask"
    rays: Literal["pixels", "edges"] = "pixels"

    ALLOWED: ClassVar[Mapping[str, Allowed]] = {"loss": known_losses("polarmask")}
