"""The loss of PointRend's refined points.

Paper: Kirillov, Wu, He, Girshick, "PointRend: Image Segmentation as Rendering", CVPR 2020, section 3.1.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edgevis.data.masks import IGNORE
from edgevis.layers.point_rend import point_labels
from edgevis.losses._checks import check_values
from runtime.errors import InputError


def point_rend_loss(logits: Tensor, xy: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy at points, whose labels are those of the nearest pixels.

    Args:
        logits: (N, classes, P) float, of the points; with one class it is told from the background.
        xy: (N, P, 2) float: x, y; 0..1 is the image.
        labels: (N, H, W) of integers or whole numbers: with one class 0 or 1, else 0 to classes - 1; points on
            :data:`edgevis.data.masks.IGNORE` are left out.

    Returns:
        () float.

    Raises:
        InputError: Shapes do not fit together, or logits are not finite.
    """
    count, _, points = logits.shape if logits.dim() == 3 else (0, 0, 0)
    if not count or xy.shape != (count, points, 2) or labels.dim() != 3 or len(labels) != count:
        raise InputError(
            f"logits are {tuple(logits.shape)}, xy {tuple(xy.shape)} and labels {tuple(labels.shape)}; allowed: "
            "(N, classes, P), (N, P, 2) and (N, H, W)"
        )
    check_values("the points' logits", logits)
    targets = point_labels(labels, xy).long()
    if logits.shape[1] > 1:
        return F.cross_entropy(logits, targets, ignore_index=IGNORE)
    counted = (targets != IGNORE).to(logits.dtype)
    of_points = F.binary_cross_entropy_with_logits(logits[:, 0], targets.to(logits.dtype), reduction="none")
    return (of_points * counted).sum() / counted.sum().clamp(min=1)
