"""The value of every crossing line of every box: the positive bags of the box-tightness losses.

Paper: Wang, Xia, "Bounding Box Tightness Prior for Weakly Supervised Image Segmentation", MICCAI 2021, section 2.3.
Provenance: our own code; the rules that the paper leaves open are those of its released code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgevis.losses.box_tightness.lines import crops_around, lines_of
from edgevis.losses.box_tightness.sampling import bilinear, bordered, taps
from edgevis.losses.box_tightness.smooth import SmoothMax, bag_values

# Arrays of so many numbers stay in a processor's cache; a GPU wants large ones.
_POINTS_CPU, _POINTS = 1 << 15, 1 << 20


def positive_bags(
    pred: Tensor, boxes: Tensor, angles: tuple[float, ...], smooth_max: SmoothMax, alpha: float, *, per_box: bool
) -> tuple[Tensor, Tensor]:
    """The bags of all boxes in order; of each box those of the first angle first, columns before rows.

    A crop around the box is rotated around its centre by bilinear resampling. A column of the result that has at least
    floor(box height / cos(angle)) pixels in the box crosses it from top to bottom and is a bag; so is a row that has
    floor(box width / cos(angle)), from left to right. Other lines are dropped. A pixel is in the box where the box's
    resampled mask is above 0.5. The maximum of a bag is over resampled prediction times resampled mask; its smooth
    approximations are over the resampled predictions of the pixels in the box.

    Args:
        pred: (B, C, H, W) floating point, 0 to 1.
        boxes: (N, 6) int64 on the CPU, image, class, x1, y1, x2, y2 inclusive, inside of their images.
        angles: In degrees, above -90 and below 90.
        smooth_max, alpha: As of :func:`edgevis.losses.box_tightness.smooth.bag_values`.
        per_box: Whether a box's mask is its own. Else it is the mask of all boxes of that class in that image, seen
            through the crop, and so are the height and width that a line must cross.

    Returns:
        The values, (P,) of the dtype of ``pred``, and their classes, (P,) int64.
    """
    if not len(boxes):
        return pred.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=pred.device)
    # 1e-4 of a pixel in the length of a line decides, so positions are float64. Apple's GPUs have none.
    device = torch.device("cpu") if pred.device.type == "mps" else pred.device
    boxes = boxes.to(device)
    plane, corners = boxes[:, 0] * pred.shape[1] + boxes[:, 1], boxes[:, 2:]
    crops = crops_around(corners, pred.shape[2], pred.shape[3])
    inner = corners if per_box else _extents(corners, crops, plane)
    lines = lines_of(inner, crops, angles)
    image = bordered(pred)
    masks = None if per_box else bordered(class_masks(boxes, pred.shape).double())
    origin = plane * image[0, 0].numel()
    values, crossing = [pred.new_zeros(0)], [torch.zeros(0, dtype=torch.bool, device=device)]
    order = lines.length.argsort(stable=True)
    for index in _groups(order, lines.length, _POINTS_CPU if device.type == "cpu" else _POINTS):
        some = lines.at(index)
        x, y = some.points()
        if masks is None:
            place, weights = taps(x, y, image, origin[some.box], dtype=pred.dtype)
            mask = _own_mask(x, y, inner[some.box])
        else:
            place, weights = taps(x, y, image, origin[some.box], dtype=x.dtype, within=crops[some.box])
            mask = bilinear(masks, place, weights)
        inside = mask > 0.5
        crossing.append(inside.sum(1) >= some.needed)
        samples = bilinear(image, place.to(pred.device), weights.to(pred.dtype).to(pred.device))
        weight = (mask if smooth_max == "max" else inside).to(pred.dtype).to(pred.device)
        values.append(bag_values(samples, weight, smooth_max, alpha))
    back = order.argsort()
    selected = torch.cat(crossing)[back].nonzero()[:, 0]
    classes = boxes[:, 1][lines.box[selected]]
    return torch.cat(values).index_select(0, back[selected].to(pred.device)), classes.to(pred.device)


def class_masks(boxes: Tensor, shape: torch.Size) -> Tensor:
    """Mask of the pixels inside any box of their class: boxes as above, shape (B, C, H, W) -> (B, C, H, W) bool."""
    images, classes, height, width = shape
    image, of_class, x1, y1, x2, y2 = boxes.unbind(1)
    # The double sum of +1 and -1 at the corners of the boxes is the number of boxes around a pixel.
    steps = torch.zeros((images, classes, height + 1, width + 1), dtype=torch.int32, device=boxes.device)
    for y, x, step in ((y1, x1, 1), (y1, x2 + 1, -1), (y2 + 1, x1, -1), (y2 + 1, x2 + 1, 1)):
        steps.index_put_((image, of_class, y, x), torch.full_like(x, step, dtype=torch.int32), accumulate=True)
    around = steps.cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32)[:, :, :height, :width]
    return around.bool()


def _extents(corners: Tensor, crops: Tensor, plane: Tensor) -> Tensor:
    """(N, 4) int64: the extent, within each box's crop, of all boxes of the same plane."""
    low = torch.maximum(corners[None, :, :2], crops[:, None, :2])
    high = torch.minimum(corners[None, :, 2:], crops[:, None, 2:])
    seen = ((low <= high).all(2) & (plane[None] == plane[:, None]))[:, :, None]
    ends = torch.iinfo(torch.int64)
    return torch.cat([low.masked_fill(~seen, ends.max).amin(1), high.masked_fill(~seen, ends.min).amax(1)], dim=1)


def _groups(order: Tensor, lengths: Tensor, points: int) -> tuple[Tensor, ...]:
    """The lines from short to long, in groups of about that many points; lines are padded to their group's longest."""
    group = lengths[order].cumsum(0) // points
    parts: tuple[Tensor, ...] = torch.split(order, [size for size in group.bincount().tolist() if size])
    return parts


def _own_mask(x: Tensor, y: Tensor, rectangles: Tensor) -> Tensor:
    """Bilinear samples of a mask that is 1 in the line's rectangle, (P, 4) int64: (P, n) float64."""
    x1, y1, x2, y2 = rectangles.double()[:, :, None].unbind(1)
    across, down = (
        ((high - low) / 2 + 1 - (place - (low + high) / 2).abs_()).clamp_(0, 1)
        for place, low, high in ((x, x1, x2), (y, y1, y2))
    )
    return across.mul_(down)
