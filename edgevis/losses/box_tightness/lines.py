"""Crossing lines of bounding boxes: where in the image the pixels of a rotated crop lie, line by line.

Paper: Wang, Xia, "Bounding Box Tightness Prior for Weakly Supervised Image Segmentation", MICCAI 2021, section 2.3.
Provenance: our own code. The paper does not say how a slanted line is drawn; its released code rotates a crop around
the box by bilinear resampling and takes the columns and rows of the result, and so does this.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# A length that is whole up to rounding counts as whole: 20 / cos 60° is 39.999999999999986 in float64, 40 is meant.
_TOLERANCE = 1e-4
# Pixels that the crop around a box has beyond the circle around it.
_MARGIN = 5


@dataclass(frozen=True, slots=True)
class Lines:
    """P lines, sorted by box, then by angle, then columns before rows.

    A line's points are (x + t step_x, y + t step_y) for t from 0 to length - 1, in pixels of the image; integers are
    pixel centres.

    Attributes:
        box: (P,) int64, the row of the boxes.
        place: (P,) int64, which column or row of the rotated crop it is.
        x, y, step_x, step_y: (P,) float64.
        length: (P,) int64, the number of points that are less than one pixel away from the box.
        needed: (P,) int64, the number of points that must be in the box for the line to cross it.
    """

    box: Tensor
    place: Tensor
    x: Tensor
    y: Tensor
    step_x: Tensor
    step_y: Tensor
    length: Tensor
    needed: Tensor

    def at(self, index: Tensor) -> Lines:
        """The lines selected by the index, (Q,) int64."""
        return Lines(*(getattr(self, field.name).index_select(0, index) for field in fields(self)))

    def points(self) -> tuple[Tensor, Tensor]:
        """The points' x and y, both (P, n) float64, n the greatest length; shorter lines are extrapolated.

        What is beyond a line's length is at least one pixel away from its box.
        """
        count = int(self.length.max()) if len(self.length) else 0
        t = torch.arange(count, dtype=torch.float64, device=self.x.device)
        return self.x[:, None] + t * self.step_x[:, None], self.y[:, None] + t * self.step_y[:, None]


def crops_around(boxes: Tensor, height: int, width: int) -> Tensor:
    """The crop to rotate for each box: the square around its circumscribed circle, clipped to the image.

    Args:
        boxes: (N, 4) int64, x1, y1, x2, y2 inclusive.
        height, width: Of the image.

    Returns:
        (N, 4) int64: x1, y1, x2, y2, the ends inclusive.
    """
    first, last = boxes[:, :2], boxes[:, 2:]
    diagonal = (last - first + 1).double().square().sum(1, keepdim=True).sqrt()
    radius = (diagonal / 2).long() + _MARGIN
    centre = (first + last + 1) // 2
    edge = torch.tensor([width - 1, height - 1], device=boxes.device)
    return torch.cat([(centre - radius).clamp(min=0), torch.minimum(centre + radius, edge)], dim=1)


def lines_of(boxes: Tensor, crops: Tensor, angles: Sequence[float]) -> Lines:
    """The columns and rows of every crop, rotated around its centre by every angle, that may cross its box.

    A column crosses if it has floor(box height / cos(angle)) points in the box, a row if it has floor(box width /
    cos(angle)). Lines that are too short for that are left out.

    Args:
        boxes, crops: (N, 4) int64, x1, y1, x2, y2 inclusive.
        angles: A in degrees, above -90 and below 90.
    """
    # K = N A rotations, each with the columns and the rows of its canvas: 2 K bundles of parallel lines.
    rotations = len(boxes) * len(angles)
    box = torch.arange(len(boxes), device=boxes.device).repeat_interleave(2 * len(angles))
    # Python's functions, so that every device has the same angles.
    cos, sin = (
        torch.tensor([function(math.radians(angle)) for angle in angles], dtype=torch.float64, device=boxes.device)
        .repeat_interleave(2)
        .repeat(len(boxes))
        for function in (math.cos, math.sin)
    )
    is_row = torch.tensor([False, True], device=boxes.device).repeat(rotations)
    sides = (crops[:, 2:] - crops[:, :2] + 1)[box]
    canvas = torch.stack([_canvas(sides, cos, sin), _canvas(sides.flip(1), cos, sin)], dim=1)
    number = torch.where(is_row, canvas[:, 1], canvas[:, 0])
    extent = (boxes[:, 2:] - boxes[:, :2] + 1)[box]
    extent = torch.where(is_row, extent[:, 0], extent[:, 1])
    needed = (extent / cos + _TOLERANCE).floor().long()

    # From bundles to their lines.
    of = torch.arange(2 * rotations, device=boxes.device).repeat_interleave(number)
    place = torch.arange(len(of), device=boxes.device) - (number.cumsum(0) - number)[of]
    is_row, cos, sin, canvas, box, needed = is_row[of], cos[of], sin[of], canvas[of], box[of], needed[of]
    # The first pixel, seen from the centre of the canvas; a column goes down from there, a row to the right.
    half = (canvas - 1) / 2
    across = torch.where(is_row, 0, place) - half[:, 0]
    down = torch.where(is_row, place, 0) - half[:, 1]
    crop, box_corners = crops[box], boxes[box]
    x = cos * across - sin * down + (crop[:, 0] + crop[:, 2]) / 2
    y = sin * across + cos * down + (crop[:, 1] + crop[:, 3]) / 2
    step_x, step_y = torch.where(is_row, cos, -sin), torch.where(is_row, sin, cos)
    x_low, x_high = _interval(box_corners[:, 0] - x, box_corners[:, 2] - x, step_x)
    y_low, y_high = _interval(box_corners[:, 1] - y, box_corners[:, 3] - y, step_y)
    end = torch.where(is_row, canvas[:, 0], canvas[:, 1]) - 1
    first = torch.maximum(x_low, y_low).clamp(min=0).ceil()
    last = torch.minimum(torch.minimum(x_high, y_high), end.double()).floor()
    length = (last - first).long() + 1
    lines = Lines(box, place, x + first * step_x, y + first * step_y, step_x, step_y, length, needed)
    return lines.at((length >= needed).nonzero()[:, 0])


def _canvas(sides: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The width (K,) int64 that holds the whole rotated crop; sides (K, 2) int64: its own and the other.

    It is symmetric around the centre, so always even; without rotation the crop stays as it is, odd or even.
    """
    half = (cos * sides[:, 0] + sin.abs() * sides[:, 1]) / 2
    return torch.where(sin == 0, sides[:, 0], 2 * (half - _TOLERANCE).ceil().long())


def _interval(low: Tensor, high: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The interval of t in which the line ``slope t`` is above ``low - 1`` and below ``high + 1``."""
    # A slope of 0 becomes one so small that either nothing or everything is between.
    slope = torch.where(slope == 0, 1e-12, slope)
    one, other = (low - 1) / slope, (high + 1) / slope
    return torch.minimum(one, other), torch.maximum(one, other)
