"""The pairwise term of the box-tightness losses: neighbouring pixels inside the boxes shall agree.

Paper: Wang, Xia, "Bounding Box Tightness Prior for Weakly Supervised Image Segmentation", MICCAI 2021, equation (3).
Provenance: our own code; the set of neighbours, which the paper leaves open, is that of its released code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from edgevis.losses.box_tightness.bags import class_masks
from edgevis.losses.box_tightness.checks import EPSILON, checked_boxes, checked_pred

_NEIGHBOURS = tuple((dy, dx) for dy in (0, 1, 2) for dx in (0, 1, 2) if (dy, dx) != (1, 1))


def pairwise_loss(pred: Tensor, boxes: Tensor) -> Tensor:
    """Mean squared difference between a pixel in a box of the class and its eight neighbours, over the whole batch.

    The neighbours may lie outside of the boxes; beyond the edge of the image they are 0. The sum is divided by the
    number of pixels in boxes plus 1e-6 times the number of pixels, so that a class without boxes has loss 0.

    Args:
        pred, boxes: As of :func:`edgevis.losses.box_tightness_loss`.

    Returns:
        (C,) of the dtype of ``pred``.

    Raises:
        InputError: An argument is not as described.
    """
    pred = checked_pred(pred)
    mask = class_masks(checked_boxes(boxes, pred), pred.shape).to(pred.device)
    images, _, height, width = pred.shape
    padded = functional.pad(pred, (1, 1, 1, 1))
    squares = sum(
        ((pred - padded[:, :, dy : dy + height, dx : dx + width]).square() for dy, dx in _NEIGHBOURS),
        start=pred.new_zeros(()),
    )
    weight = mask.sum((0, 2, 3)) + EPSILON * images * height * width
    return (squares * mask).sum((0, 2, 3)) / (len(_NEIGHBOURS) * weight)
