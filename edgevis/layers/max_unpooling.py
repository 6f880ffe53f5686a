"""Max pooling that remembers where each maximum was, and its reverse, in operators that every runtime has.

Paper: Paszke, Chaurasia, Kim, Culurciello, "ENet: A Deep Neural Network Architecture for Real-Time Semantic
Segmentation", 2016, section 4 (max-unpooling after Zeiler and Fergus, 2014).
Provenance: our own code. Licence: this file, as the rest of edgevis.

PyTorch's ``max_pool2d(..., return_indices=True)`` and ``max_unpool2d`` need MaxPool with indices and MaxUnpool or
ScatterND, which not every runtime has. A window has only four places, so four masks say as much as an index.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Places = tuple[Tensor, Tensor, Tensor, Tensor]
"""Whether the maximum of a 2x2 window is its upper left, upper right, lower left or lower right pixel: four masks
(N, C, H / 2, W / 2) bool, of which exactly one is true for each window."""


def max_pool_with_places(x: Tensor, *, tolerance: float = 0.0) -> tuple[Tensor, Places]:
    """From (N, C, H, W), H and W even, to the maxima of all 2x2 windows, (N, C, H / 2, W / 2), and their places.

    Args:
        x: Floating point.
        tolerance: A maximum m's place is the first in reading order whose pixel is at least
            m - tolerance (1 + abs(m)). With 0 it is the place of ``torch.max_pool2d``. More is for what follows
            convolutions: in a flat part of an image all pixels of a window are equal but for rounding, which every
            runtime, and PyTorch at another batch size, does otherwise.
    """
    highest = functional.max_pool2d(x, 2)
    enough = highest - tolerance * (1 + highest.abs()) if tolerance else highest
    first = x[:, :, 0::2, 0::2] >= enough
    second = (x[:, :, 0::2, 1::2] >= enough) & ~first
    third = (x[:, :, 1::2, 0::2] >= enough) & ~(first | second)
    # Not compared itself, so that there is a place even if a runtime rounds the maximum otherwise than the pixels.
    return highest, (first, second, third, ~(first | second | third))


def max_unpool(x: Tensor, places: Places) -> Tensor:
    """(N, C, h, w) -> (N, C, 2 h, 2 w): each number at its window's place, zeros around it."""
    pixels = [torch.where(place, x, 0.0) for place in places]
    rows = [torch.stack(pixels[start : start + 2], dim=-1).flatten(3) for start in (0, 2)]
    return torch.stack(rows, dim=3).flatten(2, 3)
