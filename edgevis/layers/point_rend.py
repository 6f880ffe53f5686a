"""PointRend: a mask is refined where it is uncertain, at a fixed number of points, while it is enlarged.

Paper: Kirillov, Wu, He, Girshick, "PointRend: Image Segmentation as Rendering", CVPR 2020; sections 3.1 (subdivision
and the choice of points in training) and 3.3 (the point head).
Provenance: our own code; parameters bear the names of detectron2's project (facebookresearch/detectron2, Apache-2.0),
whose semantic model it computes.
Licence: this file, as the rest of edgevis.

Maps are read at points without GridSample, which TensorRT-RTX 1.7.1 cannot build here and TensorRT's importer takes for
nearest at opset 20: four neighbours are gathered and weighed. Points of the subdivision are pixels of a finer grid,
whose places in a coarser map are whole numbers over a power of two: integer arithmetic, exact in every engine.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.layers.fpn import doubled
from runtime.errors import InputError

MAX_POINTS = 3840
"""The largest k of TensorRT's TopK; the paper's 8,192 points at 512 x 1024 are more."""

_OVERSAMPLING, _UNCERTAIN_SHARE = 3, 0.75


class PointLogits(NamedTuple):
    """Logits at single points of images.

    Attributes:
        logits: (N, classes, P) float.
        xy: (N, P, 2) float: x, y; 0..1 is the image.
    """

    logits: Tensor
    xy: Tensor


class PointHead(nn.Module):
    """Three 1x1 convolutions with ReLU, and one to logits: a small network for each point alone.

    Args:
        inputs: Channels of the fine features.
        classes: Of the coarse logits and of the result.
        width: Channels between.
        coarse_each_layer: Whether the coarse logits are appended again after each convolution, as the published
            instance model does; the semantic one does not.
    """

    def __init__(self, inputs: int, *, classes: int, width: int = 256, coarse_each_layer: bool = False) -> None:
        super().__init__()
        self.coarse_each_layer = coarse_each_layer
        incoming = inputs + classes
        for number in range(1, 4):
            layer = nn.Conv1d(incoming, width, 1)
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))
            self.add_module(f"fc{number}", layer)
            incoming = width + (classes if coarse_each_layer else 0)
        self.predictor = nn.Conv1d(incoming, classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.get_parameter("bias"))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Fine features (N, inputs, P) and coarse logits (N, classes, P) of P points -> logits (N, classes, P)."""
        x = torch.cat([fine, coarse], 1)
        for number in range(1, 4):
            x = torch.relu(self.get_submodule(f"fc{number}")(x))
            if self.coarse_each_layer:
                x = torch.cat([x, coarse], 1)
        logits: Tensor = self.predictor(x)
        return logits


def uncertainty(logits: Tensor) -> Tensor:
    """(N, classes, ...) -> (N, 1, ...), <= 0, and 0 where the decision is a tie.

    Of several classes the second largest logit less the largest; of one, -abs(logit), which is the same beside a
    background whose logit is 0.
    """
    if logits.shape[1] == 1:
        return -logits.abs()
    if logits.shape[1] == 2:  # no sorting in an engine
        return -(logits[:, :1] - logits[:, 1:]).abs()
    highest = logits.topk(2, dim=1).values
    return highest[:, 1:] - highest[:, :1]


def point_sample(x: Tensor, xy: Tensor) -> Tensor:
    """Bilinear values of a map at points; pixel centres lie at (i + 0.5) / n, and the map is 0 outside of itself.

    So values fade within half a pixel of the border; the published weights were trained with that.

    Args:
        x: (N, C, h, w) float.
        xy: (N, P, 2) float: x, y; 0..1 is the map.

    Returns:
        (N, C, P).
    """
    height, width = x.shape[2:]
    sizes = torch.tensor([width, height], dtype=xy.dtype, device=xy.device)
    # From one pixel outside on there are only zeros.
    place = torch.minimum((xy * sizes - 0.5).clamp(min=-1), sizes)
    first = torch.minimum(place.floor(), sizes - 1)
    return _bilinear(x, first.long(), place - first)


def sample_at_pixels(x: Tensor, index: Tensor, *, ratio: int) -> Tensor:
    """As :func:`point_sample` at the centres of pixels of a grid whose sides are ``ratio`` times the map's.

    Args:
        x: (N, C, h, w) float.
        index: (N, P) int64: flat numbers of pixels of the (ratio h, ratio w) grid.
        ratio: A power of two: weights are then exact in 16 bits, too.

    Returns:
        (N, C, P).
    """
    width = ratio * x.shape[3]
    row = _quotient(index, width)
    # The place (i + 0.5) / ratio - 0.5 in halves of a fine pixel, and one coarse pixel more, so that it is positive.
    halves = 2 * torch.stack([index - row * width, row], -1) + 1 + ratio
    above = _quotient(halves, 2 * ratio)
    return _bilinear(x, above - 1, (halves - 2 * ratio * above).to(x.dtype) / (2 * ratio))


def point_labels(labels: Tensor, xy: Tensor) -> Tensor:
    """The labels (N, H, W) at points (N, P, 2) in 0..1, by the nearest pixel, halves to even: (N, P), 0 outside."""
    height, width = labels.shape[1:]
    sizes = torch.tensor([width, height], dtype=xy.dtype, device=xy.device)
    column, row = (xy * sizes - 0.5).round().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    return torch.where(inside, labels.flatten(1).gather(1, index), 0)


def training_points(logits: Tensor, count: int, *, draws: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The points at which an image's loss is taken: most where the sampled logits are uncertain, the rest anywhere.

    Args:
        logits: (N, classes, h, w) float; no gradient flows.
        count: Points for each image.
        draws: Uniform numbers 0..1 instead of new ones: (N, 3 count, 2) and (N, count - 3/4 count, 2).

    Returns:
        (N, count, 2): x, y, 0..1.

    Raises:
        InputError: ``draws`` have another shape.
    """
    uncertain = int(_UNCERTAIN_SHARE * count)
    shapes = [(len(logits), number, 2) for number in (_OVERSAMPLING * count, count - uncertain)]
    if draws is None:
        candidates, rest = (torch.rand(shape, device=logits.device) for shape in shapes)
    else:
        candidates, rest = draws
    if [tuple(candidates.shape), tuple(rest.shape)] != shapes:
        raise InputError(f"draws are {tuple(candidates.shape)} and {tuple(rest.shape)}; allowed: {shapes}")
    with torch.no_grad():
        # Of the sampled logits, not sampled from a map of uncertainty: between two sure pixels of different classes
        # there is a place that belongs to both (section 3.1).
        chosen = uncertainty(point_sample(logits, candidates))[:, 0].topk(uncertain, dim=1).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), rest], 1)


def subdivide(coarse: Tensor, fine: Tensor, head: nn.Module, *, points: int, steps: int) -> Tensor:
    """Enlarge logits by two, compute the most uncertain ones anew from both maps, and again, ``steps`` times.

    Args:
        coarse: (N, classes, h, w) logits.
        fine: (N, C, h, w) features; each point is computed from them and from ``coarse``, not from the enlarged map.
        head: A :class:`PointHead`.
        points: Of each step, up to :data:`MAX_POINTS` and 4 h w.
        steps: Doublings.

    Returns:
        (N, classes, 2^steps h, 2^steps w).
    """
    logits = coarse
    for step in range(1, steps + 1):
        logits = doubled(logits)
        flat = logits.flatten(2)
        index = uncertainty(flat)[:, 0].topk(points, dim=1).indices
        ratio = 2**step
        refined = head(sample_at_pixels(fine, index, ratio=ratio), sample_at_pixels(coarse, index, ratio=ratio))
        logits = flat.scatter(2, _for_channels(index, flat), refined.to(flat.dtype)).reshape(logits.shape)
    return logits


def _bilinear(x: Tensor, first: Tensor, share: Tensor) -> Tensor:
    """The weighted sum of four neighbouring pixels.

    Args:
        x: (N, C, h, w); around it are zeros.
        first: (N, P, 2) int64: column and row of the upper left pixel, from -1 to w - 1 and h - 1.
        share: (N, P, 2): how far the point is on the way to the lower right one, 0..1.
    """
    padded = functional.pad(x, (1, 1, 1, 1))
    width = padded.shape[3]
    column, row = (first + 1).unbind(-1)
    corner = row * width + column
    index = torch.cat([corner, corner + 1, corner + width, corner + width + 1], 1)
    right, down = share.unbind(-1)
    left, up = 1 - right, 1 - down
    weights = torch.cat([left * up, right * up, left * down, right * down], 1)
    flat = padded.flatten(2)
    weighed = flat.gather(2, _for_channels(index, flat)) * weights[:, None]
    first_two, last_two = weighed.chunk(2, 2)
    pairs = first_two + last_two
    above, below = pairs.chunk(2, 2)
    return above + below


def _quotient(numbers: Tensor, divisor: int) -> Tensor:
    """The whole quotients of int64 numbers >= 0: one integer division in ONNX, which rounds down there.

    PyTorch 2.13's exporter would divide in floating point, and a cast of the graph to float16 would round the places.
    """
    if not torch.onnx.is_in_onnx_export():
        return torch.div(numbers, divisor, rounding_mode="floor")
    quotients: Tensor = torch.onnx.ops.symbolic(
        "Div", (numbers, torch.tensor(divisor)), dtype=numbers.dtype, shape=numbers.shape
    )
    return quotients


def _for_channels(index: Tensor, x: Tensor) -> Tensor:
    """(N, P) -> (N, C, P): the same places of each channel of x."""
    return index[:, None].expand(-1, x.shape[1], -1)
