"""The speed of the box-tightness loss against a loop over its lines: ``python -m benchmarks.losses``.

One 256 x 256 image, four boxes, five angles; forward and backward on the CPU, the two by turns. Their losses and
gradients are compared first.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.report import report
from edgevis import EdgevisError
from edgevis.losses import box_tightness_loss
from edgevis.losses.box_tightness.smooth import SmoothMax

ANGLES = (-40, -20, 0, 20, 40)
BOXES = ((20, 30, 90, 110), (120, 20, 230, 90), (30, 140, 100, 240), (130, 130, 220, 210))
_EPSILON = 1e-6

Loss = Callable[[Tensor, Tensor, Sequence[float], SmoothMax, float], Tensor]


@dataclass(frozen=True, slots=True)
class LossSpeed:
    """Medians of forward and backward together.

    Attributes:
        smooth_max: How a bag's value is made.
        loop_ms, ours_ms: Milliseconds of :func:`line_by_line` and of ``edgevis.losses.box_tightness_loss``.
        ratio: The median over rounds of how many times faster ours was.
        runs: Rounds; in each both ran once.
        threads: PyTorch's threads.
    """

    smooth_max: str
    loop_ms: float
    ours_ms: float
    ratio: float
    runs: int
    threads: int


def line_by_line(pred: Tensor, boxes: Tensor, angles: Sequence[float], smooth_max: SmoothMax, alpha: float) -> Tensor:
    """The loss written as loops: for each box and angle a rotated crop, for each of its lines a bag.

    Arguments and result as of ``edgevis.losses.box_tightness_loss``, without its checks.
    """
    pred = pred.clamp(_EPSILON, 1 - _EPSILON)
    losses = []
    for of_class in range(pred.shape[1]):
        outside = torch.ones_like(pred[:, of_class], dtype=torch.bool)
        bags: list[Tensor] = []
        for image, box_class, x1, y1, x2, y2 in boxes.tolist():
            if box_class == of_class:
                outside[image, y1 : y2 + 1, x1 : x2 + 1] = False
                bags += _bags(pred[image, of_class], (x1, y1, x2, y2), angles, smooth_max, alpha)
        pixels = pred[:, of_class][outside]
        loss = -0.75 * (pixels.square() * torch.log1p(-pixels)).sum()
        if bags:
            values = torch.stack(bags).clamp(_EPSILON, 1 - _EPSILON)
            loss = loss - 0.25 * ((1 - values).square() * values.log()).sum()
        losses.append(loss / max(1, len(bags)))
    return torch.stack(losses)


def measure(*, runs: int, side: int = 256) -> list[LossSpeed]:
    """One row for each smooth maximum of the paper; EdgevisError when the two losses differ."""
    random = torch.Generator().manual_seed(0)
    pred = torch.rand(1, 1, side, side, generator=random)
    boxes = torch.tensor([(0, 0, *(position * side // 256 for position in box)) for box in BOXES])
    return [_measure(pred, boxes, name, runs) for name in get_args(SmoothMax) if name != "genmean"]


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per smooth maximum."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="rounds (default: 15)")
    parser.add_argument("--quick", action="store_true", help="a small image, two rounds: does it work")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: measure(runs=2, side=64) if arguments.quick else measure(runs=max(1, arguments.runs)),
        headers=("smooth maximum", "loop ms", "ours ms", "times faster"),
        cells=lambda item: (item.smooth_max, f"{item.loop_ms:.1f}", f"{item.ours_ms:.1f}", f"{item.ratio:.1f}"),
        as_json=arguments.json,
        title=lambda item: f"forward and backward, {item.threads} thread(s), median of {item.runs}",
    )


def _measure(pred: Tensor, boxes: Tensor, smooth_max: SmoothMax, runs: int) -> LossSpeed:
    results = [_run(loss, pred, boxes, smooth_max) for loss in (line_by_line, box_tightness_loss)]
    for name, one, other in zip(("losses", "gradients"), *(run[:2] for run in results), strict=True):
        off = float((one - other).abs().max() / one.abs().max())
        if off > 1e-4:
            raise EdgevisError(f"{smooth_max}: the {name} of the two implementations differ by {off:.1e}, relative")
    times = [
        tuple(_run(loss, pred, boxes, smooth_max)[2] for loss in (line_by_line, box_tightness_loss))
        for _ in range(runs)
    ]
    loop, ours = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(one / other for one, other in times)
    return LossSpeed(smooth_max, loop, ours, ratio, runs, torch.get_num_threads())


def _run(loss: Loss, pred: Tensor, boxes: Tensor, smooth_max: SmoothMax) -> tuple[Tensor, Tensor, float]:
    """The loss, its gradient, and the milliseconds of both."""
    leaf = pred.clone().requires_grad_()
    start = time.perf_counter()
    value = loss(leaf, boxes, ANGLES, smooth_max, 4.0)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient, 1e3 * (time.perf_counter() - start)


def _bags(
    image: Tensor, box: tuple[int, int, int, int], angles: Sequence[float], smooth_max: SmoothMax, alpha: float
) -> list[Tensor]:
    """The value of each column and row of the rotated crops of one image (H, W) that crosses the box."""
    x1, y1, x2, y2 = box
    height, width = y2 - y1 + 1, x2 - x1 + 1
    radius = int(math.hypot(height, width) / 2) + 5
    x, y = (x1 + x2 + 1) // 2, (y1 + y2 + 1) // 2
    mask = torch.zeros_like(image)
    mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    crop = torch.stack([image, mask])[:, max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
    bags = []
    for angle in angles:
        pixels, inside = _rotated(crop, math.radians(angle))
        for lines, weights, side in ((pixels.T, inside.T, height), (pixels, inside, width)):
            needed = math.floor(side / math.cos(math.radians(angle)) + 1e-4)
            for line, weight in zip(lines, weights, strict=True):
                if int((weight > 0.5).sum()) >= needed:
                    bags.append(_value(line, weight, smooth_max, alpha))
    return bags


def _rotated(crop: Tensor, angle: float) -> Tensor:
    """Rotate (2, h, w) around its centre by an angle in radians, on a canvas that holds all of it."""
    if angle == 0:
        return crop
    cos, sin = math.cos(angle), math.sin(angle)
    height, width = crop.shape[1:]
    wide = 2 * math.ceil((cos * width + abs(sin) * height) / 2 - 1e-4)
    high = 2 * math.ceil((abs(sin) * width + cos * height) / 2 - 1e-4)
    x = torch.arange(wide, dtype=crop.dtype)[None, :] - (wide - 1) / 2
    y = torch.arange(high, dtype=crop.dtype)[:, None] - (high - 1) / 2
    grid = torch.stack([(cos * x - sin * y) * 2 / width, (sin * x + cos * y) * 2 / height], dim=2)
    return functional.grid_sample(crop[None], grid[None], align_corners=False)[0]


def _value(line: Tensor, weight: Tensor, smooth_max: SmoothMax, alpha: float) -> Tensor:
    if smooth_max == "max":
        return (line * weight).max()
    pixels = line[weight > 0.5]
    exponentials = (alpha * pixels).exp()
    if smooth_max == "softmax":
        return (pixels * exponentials).sum() / exponentials.sum()
    return exponentials.mean().log() / alpha


if __name__ == "__main__":
    sys.exit(main())
