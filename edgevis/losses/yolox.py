"""The loss of YOLOX.

Paper: Ge, Liu, Wang, Li, Sun, "YOLOX: Exceeding YOLO Series in 2021", arXiv:2107.08430, section 2.1. Of the paper: IoU
loss for boxes, binary cross-entropy for class and objectness, class targets times the overlap, an L1 loss at the end.
Of the released code: 1 - IoU squared, its weight 5.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.layers.grid_boxes import cell_grid, decode_cells
from edgevis.losses._boxes import ImageTargets, centres_inside, paired_iou, targets_by_image
from edgevis.losses._checks import check_values
from edgevis.losses.sim_ota import sim_ota
from runtime.errors import InputError

_BOX_WEIGHT = 5.0


class YOLOXLoss(nn.Module):
    """The sum over cells of the terms of YOLOX, each over the number of cells that learn an object.

    Cells in ignored regions that learn no object have no objectness loss. A box's ``weight`` below 1 is the
    probability that cells learn as objectness, and weights its box and class terms.

    Args:
        strides: Of the maps, in their order.
        l1: Whether the L1 loss of the box code is added, as the paper does in its last 15 epochs.
    """

    def __init__(self, *, strides: Sequence[int] = (8, 16, 32), l1: bool = False) -> None:
        super().__init__()
        self.strides, self.l1 = tuple(strides), l1

    def forward(self, rows: Tensor, targets: Tensor, *, size: tuple[int, int]) -> dict[str, Tensor]:
        """The terms by name.

        Args:
            rows: (B, A, 5 + C) float: raw outputs of the cells of all levels, levels in the order of the strides and
                cells row by row: box code (4), logit of objectness, logits of the classes.
            targets: (M, 8) float32, see :data:`edgevis.losses._boxes.COLUMNS`.
            size: Height and width of the input in pixels.

        Raises:
            InputError: Shapes do not fit, outputs are not finite, or targets are not as described.
        """
        corners, strides = (part.to(rows.device) for part in cell_grid(size, self.strides))
        if rows.ndim != 3 or rows.shape[1] != len(corners) or rows.shape[2] < 6:
            raise InputError(
                f"rows have shape {tuple(rows.shape)}; allowed for an input of {size}: (B, {len(corners)}, 5 + classes)"
            )
        check_values("rows", rows)
        code, objectness, logits = rows[..., :4], rows[..., 4], rows[..., 5:]
        boxes, centres = decode_cells(code, corners, strides), corners + strides / 2
        should, counts = torch.zeros_like(objectness), torch.ones_like(objectness)
        sums = {name: rows.new_zeros(()) for name in ("iou", "class", *(("l1",) if self.l1 else ()))}
        learned = 0
        for number, image in enumerate(targets_by_image(targets, len(rows), logits.shape[2])):
            cells, objects = sim_ota(boxes[number], objectness[number], logits[number], centres, strides, image)
            if len(image.ignored):
                counts[number, centres_inside(centres, image.ignored).any(1)] = 0.0
            counts[number, cells] = 1.0
            if not len(cells):
                continue
            learned += len(cells)
            weights = image.weights[objects]
            should[number, cells] = weights
            overlap = paired_iou(boxes[number, cells], image.boxes[objects])
            sums["iou"] = sums["iou"] + (weights * (1 - overlap.square())).sum()
            sums["class"] = sums["class"] + _class_term(logits[number, cells], overlap, image, objects)
            if self.l1:
                right = _code(image.boxes[objects], corners[cells], strides[cells])
                sums["l1"] = sums["l1"] + (weights[:, None] * (code[number, cells] - right).abs()).sum()
        entropy = functional.binary_cross_entropy_with_logits(objectness, should, reduction="none")
        sums["objectness"] = (counts * entropy).sum()
        sums["iou"] = _BOX_WEIGHT * sums["iou"]
        return {name: value / max(learned, 1) for name, value in sums.items()}


def _class_term(logits: Tensor, overlap: Tensor, image: ImageTargets, objects: Tensor) -> Tensor:
    right = functional.one_hot(image.classes[objects], logits.shape[1]) * overlap.detach()[:, None]
    entropy = functional.binary_cross_entropy_with_logits(logits, right, reduction="none")
    return (image.weights[objects, None] * entropy).sum()


def _code(boxes: Tensor, corners: Tensor, strides: Tensor) -> Tensor:
    """The box code that decodes to these boxes, see :func:`edgevis.layers.grid_boxes.decode_cells`."""
    centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([(centre - corners) / strides, torch.log(sides / strides + 1e-8)], dim=1)
