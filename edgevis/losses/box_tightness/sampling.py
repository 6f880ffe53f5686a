"""Bilinear samples of images, which keep little for the backward pass.

Provenance: our own code. Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def bordered(maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) -> (B, C, H + 2, W + 2): with a border of zeros, so that no neighbour of a point is missing."""
    return functional.pad(maps, (1, 1, 1, 1))


def taps(
    x: Tensor, y: Tensor, image: Tensor, origin: Tensor, *, dtype: torch.dtype, within: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The arguments of :func:`bilinear` for points on P lines.

    Args:
        x, y: (P, n) float64, in pixels of the image without its border. Points beyond the border are moved to where
            memory is; their samples mean nothing.
        image: What :func:`bordered` gives.
        origin: (P,) int64, how many numbers of ``image`` come before the line's map.
        dtype: Of the weights.
        within: (P, 4) int64, x1, y1, x2, y2 inclusive: neighbours outside of it weigh nothing.

    Returns:
        The upper left neighbour of each point as a number in the flat image, (P, n) int64, and the weights of the left,
        right, upper and lower neighbours, (4, P, n).
    """
    left, upper = x.floor(), y.floor()
    weights = torch.empty((4, *x.shape), dtype=dtype, device=x.device)
    for exact, whole, (before, after) in ((x, left, weights[:2]), (y, upper, weights[2:])):
        torch.sub(exact, whole, out=after)
        torch.sub(1, after, out=before)
    if within is not None:
        x1, y1, x2, y2 = within[:, :, None].unbind(1)
        for weight, place, low, high in zip(
            weights, (left, left + 1, upper, upper + 1), (x1, x1, y1, y1), (x2, x2, y2, y2), strict=True
        ):
            weight *= (place >= low) & (place <= high)
    stride = image.shape[3]
    place = upper.add_(1).mul_(stride).add_(left).add_(origin[:, None] + 1)
    return place.clamp_(0, image.numel() - stride - 2).long(), weights


def bilinear(image: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of four neighbours, with a gradient for the image.

    Args:
        image: (B, C, H, W) floating point.
        place, weights: What :func:`taps` gives; the weights have the dtype of ``image``.

    Returns:
        (P, n) of the dtype of ``image``.
    """
    apply: Callable[[Tensor, Tensor, Tensor], Tensor] = _Bilinear.apply  # has no types before PyTorch 2.14
    return apply(image, place, weights)


class _Bilinear(torch.autograd.Function):
    """Bilinear interpolation as one autograd function; written out, autograd would keep ten numbers for each sample."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, place: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(place, weights)
        ctx.shape = image.shape
        flat, index, stride = image.flatten(), place.flatten(), image.shape[3]
        left, right, upper, lower = weights
        # A shifted view in place of a shifted index: no second index is made.
        upper_left, upper_right, lower_left, lower_right = (
            flat[shift:].index_select(0, index).view_as(place) for shift in (0, 1, stride, stride + 1)
        )
        above = upper_left.mul_(left).addcmul_(upper_right, right)
        below = lower_left.mul_(left).addcmul_(lower_right, right)
        return above.mul_(upper).addcmul_(below, lower)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        place, weights = ctx.saved_tensors
        index, stride = place.flatten(), ctx.shape[3]
        left, right, upper, lower = weights
        above, below = grad * upper, grad * lower
        result = grad.new_zeros(ctx.shape.numel())
        for shift, part in (
            (0, above * left),
            (1, above * right),
            (stride, below * left),
            (stride + 1, below * right),
        ):
            result[shift:].index_add_(0, index, part.flatten())
        return result.view(ctx.shape), None, None
