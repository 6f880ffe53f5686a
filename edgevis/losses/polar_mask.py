"""PolarMask's losses: polar IoU, polar centreness, and all of its terms.

Paper: Xie, Sun, Song, Wang, Liu, Liang, Shen, Luo, "PolarMask: Single Shot Instance Segmentation With Polar
Representation", CVPR 2020: equation (2), polar centreness, and equations (5) to (8), polar IoU. Of its code
(xieenze/PolarMask, Apache-2.0): the weights by centreness, what each term is divided by, focal loss with alpha 0.25
and gamma 2.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.data.polar_targets import COLUMNS, IGNORED, RAYS
from edgevis.losses._checks import check_values
from edgevis.losses.focal import sigmoid_focal_loss
from runtime.errors import InputError

_CODE = 4 + RAYS + 1
_GAMMA = 2.0
_LEAST = 1e-6


def polar_centerness(rays: Tensor) -> Tensor:
    """The square root of the shortest over the longest ray: (M, 36) lengths above 0 to (M,), 0..1."""
    return (rays.amin(1) / rays.amax(1)).sqrt()


def polar_iou_loss(rays: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The logarithm of the summed larger over the summed smaller lengths, as a weighted mean.

    Args:
        rays: (M, 36) float: lengths above 0.
        targets: (M, 36) float, likewise.
        weights: (M,) float, 0 or more.

    Returns:
        A scalar; 0 where all weights are.
    """
    ratio = torch.maximum(rays, targets).sum(1) / torch.minimum(rays, targets).clamp(min=_LEAST).sum(1)
    return _mean(ratio.log(), weights)


def distance_iou_loss(distances: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The negative logarithm of the overlap of boxes around one point, as a weighted mean.

    Args:
        distances: (M, 4) float: left, top, right, bottom to the first and the last pixel, above 0.
        targets: (M, 4) float, likewise.
        weights: (M,) float, 0 or more.

    Returns:
        A scalar; 0 where all weights are.
    """
    shared, own, right = (_area(x) for x in (torch.minimum(distances, targets), distances, targets))
    return _mean(-(shared / (own + right - shared)).clamp(min=_LEAST).log(), weights)


class PolarMaskLoss(nn.Module):
    """Focal loss of the classes over the learning points plus the images; of the learning points cross-entropy of the
    centreness, and the losses of boxes and rays, weighted by the centreness that is right.
    """

    def forward(self, rows: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The terms by name.

        Args:
            rows: (B, P, 41 + C) float: raw outputs of the points of all levels: distances to left, top, right and
                bottom and 36 rays, in pixels, above 0; logit of centreness; logits of the classes.
            targets: (B, P, 41) float32, see :func:`edgevis.data.polar_targets.polar_targets`.

        Raises:
            InputError: Shapes do not fit, outputs are not finite, or targets have a class that the rows lack.
        """
        if rows.ndim != 3 or rows.shape[2] <= _CODE or tuple(targets.shape) != (*rows.shape[:2], COLUMNS):
            raise InputError(
                f"rows have shape {tuple(rows.shape)} and targets {tuple(targets.shape)}; allowed: "
                f"(B, P, {_CODE} + classes) and (B, P, {COLUMNS})"
            )
        check_values("rows", rows)
        logits, classes = rows[..., _CODE:], targets[..., 0].long()
        if not torch.compiler.is_compiling() and int(classes.max()) >= logits.shape[2]:
            raise InputError(f"targets have the class {int(classes.max())}; allowed: below {logits.shape[2]}")
        learns = classes >= 0
        one_hot = functional.one_hot(classes.clamp(min=0), logits.shape[2]) * learns[..., None]
        counts = (classes != IGNORED)[..., None]
        focal = (counts * sigmoid_focal_loss(logits, one_hot.to(logits.dtype), gamma=_GAMMA)).sum()
        found, right = rows[learns], targets[learns]
        rays = right[:, 5:]
        weights = polar_centerness(rays)
        entropy = functional.binary_cross_entropy_with_logits(found[:, _CODE - 1], weights, reduction="sum")
        return {
            "class": focal / (learns.sum() + len(rows)),
            "box": distance_iou_loss(found[:, :4], right[:, 1:5], weights),
            "rays": polar_iou_loss(found[:, 4 : _CODE - 1], rays, weights),
            "centerness": entropy / max(len(found), 1),
        }


def _area(distances: Tensor) -> Tensor:
    """Of boxes whose last pixels belong to them."""
    width, height = distances[:, 0] + distances[:, 2] + 1, distances[:, 1] + distances[:, 3] + 1
    return width * height


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=_LEAST)
