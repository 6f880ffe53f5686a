"""Bilinear resizing written as multiplication by constant matrices: for grids that are not the last two axes.

The rule is that of few-shot segmentation's reference code, bilinear with ``align_corners=True``: the corner points of
both grids lie on one another. A matrix serves two ends that a Resize node does not. It resizes the query grid of a
4-D correlation (N, C, query places, support places) where it stands, without two transpositions of the whole tensor;
and its zeros are exact, so a resized mask is zero at the same places in every runtime (a Resize node rounds its
sampling coordinates, each runtime in its own way).

Provenance: our own code.
Licence: this file, as the rest of edgevis.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from runtime.errors import InputError


def resize_matrix(inputs: int, outputs: int) -> Tensor:
    """The (outputs, inputs) float32 matrix that resizes an axis of ``inputs`` points to ``outputs`` points.

    Each row holds one or two positive weights that add up to 1; where a sampling coordinate is an integer there is
    one, exactly 1. One output point samples the first input, as in PyTorch.

    Raises:
        InputError: A side is below 1.
    """
    if inputs < 1 or outputs < 1:
        raise InputError(f"cannot resize {inputs} points to {outputs}; allowed: 1 or more on both sides")
    matrix = torch.zeros(outputs, inputs)
    step = Fraction(inputs - 1, outputs - 1) if outputs > 1 else Fraction(0)
    for row in range(outputs):
        place = row * step
        left = int(place)
        matrix[row, left] = float(1 - (place - left))
        if place > left:
            matrix[row, left + 1] = float(place - left)
    return matrix


def resize_query_grid(x: Tensor, matrix: Tensor) -> Tensor:
    """Resize the query grid of a 4-D tensor, both sides alike.

    Args:
        x: (N, C, n * n, S) float: query places in row order, then support places.
        matrix: (m, n), see :func:`resize_matrix`.

    Returns:
        (N, C, m * m, S).

    Raises:
        InputError: ``x`` has not n * n query places.
    """
    outputs, inputs = matrix.shape
    if x.dim() != 4 or x.shape[2] != inputs * inputs:
        raise InputError(
            f"a tensor of shape {tuple(x.shape)} is no (N, C, {inputs * inputs}, S); "
            f"the matrix resizes query grids of {inputs} x {inputs} places"
        )
    batch, channels, _, support = x.shape
    rows = matrix @ x.reshape(batch, channels, inputs, inputs * support)
    columns = matrix @ rows.reshape(batch, channels * outputs, inputs, support)
    return columns.reshape(batch, channels, outputs * outputs, support)


def resize_mask(mask: Tensor, matrix: Tensor) -> Tensor:
    """Resize masks (N, n, n) float32 in 0..1 by a matrix (m, n): (N, m, m), zero only where no sample is above zero.

    Raises:
        InputError: The masks have not the side n.
    """
    side = matrix.shape[1]
    if mask.dim() != 3 or mask.shape[1] != side or mask.shape[2] != side:
        raise InputError(f"a mask of shape {tuple(mask.shape)}; allowed: (N, {side}, {side})")
    return matrix @ mask @ matrix.T
