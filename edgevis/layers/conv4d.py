"""The centre-pivot 4-D convolution, which squeezes the correlations of two images.

Paper: Min, Kang, Cho, "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021, section 4.2 and equation 4.
Provenance: our own code.
Licence: this file, as the rest of edgevis.

A 4-D tensor relates each place of a query grid to each place of a support grid. Here it has one of two layouts, both
of rank 4 with the grids flattened in row order, so that one of the two convolutions runs where the data lie:

- *query-major*, (B, Q, C, S): for each query place a map over the support grid. The support convolution is a plain
  batched 2-D convolution.
- *support-major*, (B, S, C, Q): for each support place a map over the query grid. So is the query convolution. The
  support convolution becomes a 1x1 convolution of all S * C channels; for the few support places that are left after
  squeezing that is less work than a convolution that mostly multiplies padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import InputError, ModelError

Grid = tuple[int, int]
"""Sides (h, w) of a grid: plain ints, so that exported graphs hold them as constants."""

# Up to this many support places the support-major form is the faster one (a 3x3 kernel on a 2x2 grid has more taps
# outside than inside), from this many query places on (its weight has to be laid out).
_DENSE_PLACES = 4
_DENSE_QUERIES = 256

_INNERMOST_FROM = 16


class CenterPivotConv4d(nn.Module):
    """The sum of a 2-D convolution over the query grid and one over the support grid, both with bias.

    The query convolution runs at every support place that the stride keeps, the support convolution at every query
    place, strided. Both pad by half their kernel: query sides stay, support sides n become ceil(n / support_stride).

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: Side of both kernels, odd.
        support_stride: Stride on the support grid; that of the query grid is 1.

    Attributes:
        query: The ``nn.Conv2d`` over the query grid.
        support: The ``nn.Conv2d`` over the support grid.

    Raises:
        ModelError: A size is out of range.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, support_stride: int) -> None:
        super().__init__()
        if min(in_channels, out_channels, support_stride) < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ModelError(
                f"a 4-D convolution of {in_channels} to {out_channels} channels, kernel {kernel_size}, support stride "
                f"{support_stride}; allowed: sizes of 1 or more and an odd kernel"
            )
        padding = kernel_size // 2
        self.support_stride = support_stride
        self.query = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding)
        self.support = nn.Conv2d(in_channels, out_channels, kernel_size, support_stride, padding=padding)
        # PyTorch then convolves with the channels innermost: 2 to 4 times faster at so few channels (CPU), but not
        # worth laying out anew the whole tensor of the first layers, which have fewer still.
        innermost = (self.query, self.support) if in_channels >= _INNERMOST_FROM else (self.query,)
        for convolution in innermost:
            convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last)

    def _over_support(self, planes: Tensor) -> Tensor:
        # In float32 where a processor trains in bfloat16: of so many small planes, oneDNN's gradients of the weights
        # are then now and then garbage (PyTorch 2.13; other values with each run of the same training).
        output: Tensor
        if planes.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                output = self.support(planes.float())
        else:
            output = self.support(planes)
        return output

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a tensor with both grids open.

        Args:
            x: (B, C, ha, wa, hb, wb) float32, query grid first.

        Returns:
            (B, O, ha, wa, ceil(hb / support_stride), ceil(wb / support_stride)).

        Raises:
            InputError: The tensor is not of that shape, or empty.
        """
        if x.dim() != 6 or x.shape[1] != self.query.in_channels or 0 in x.shape:
            raise InputError(
                f"a tensor of shape {tuple(x.shape)}; allowed: (B, {self.query.in_channels}, ha, wa, hb, wb), not empty"
            )
        query_grid, support_grid = (x.shape[2], x.shape[3]), (x.shape[4], x.shape[5])
        planes = x.flatten(4).flatten(2, 3)  # (B, C, Q, S)
        if self.support_stride == 1 and planes.shape[3] <= _DENSE_PLACES and planes.shape[2] >= _DENSE_QUERIES:
            result = self.support_major(planes.permute(0, 3, 1, 2), query_grid, support_grid).permute(0, 2, 3, 1)
        else:
            result = self.query_major(planes.transpose(1, 2), query_grid, support_grid).transpose(1, 2)
        return result.reshape(*result.shape[:2], *query_grid, *self.kept_grid(support_grid))

    def kept_grid(self, support_grid: Grid) -> Grid:
        """The support grid after the convolution."""
        stride = self.support_stride
        return -(-support_grid[0] // stride), -(-support_grid[1] // stride)

    def query_major(self, x: Tensor, query_grid: Grid, support_grid: Grid) -> Tensor:
        """(B, Q, C, S) -> (B, Q, O, S')."""
        channels, outputs = self.query.in_channels, self.query.out_channels
        queries, stride = query_grid[0] * query_grid[1], self.support_stride
        rows, columns = self.kept_grid(support_grid)
        strided = x.reshape(-1, queries, channels, *support_grid)[..., ::stride, ::stride]
        over_query: Tensor = self.query(strided.permute(0, 3, 4, 2, 1).reshape(-1, channels, *query_grid))
        over_support = self._over_support(x.reshape(-1, channels, *support_grid))
        over_query = over_query.reshape(-1, rows * columns, outputs, queries).permute(0, 3, 2, 1)
        return over_support.reshape(-1, queries, outputs, rows * columns) + over_query

    def support_major(self, x: Tensor, query_grid: Grid, support_grid: Grid) -> Tensor:
        """(B, S, C, Q) -> (B, S, O, Q), stride 1 only; meant for support grids of a few places.

        Raises:
            InputError: The convolution strides.
        """
        if self.support_stride != 1:
            raise InputError(f"the support stride is {self.support_stride}; support-major convolutions have stride 1")
        channels, outputs = self.query.in_channels, self.query.out_channels
        places = support_grid[0] * support_grid[1]
        over_query: Tensor = self.query(x.reshape(-1, channels, *query_grid))
        all_channels = x.reshape(-1, places * channels, *query_grid)
        over_support = F.conv2d(all_channels, *self._dense(support_grid))
        shape = (-1, places, outputs, query_grid[0] * query_grid[1])
        return over_query.reshape(shape) + over_support.reshape(shape)

    def _dense(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """The support convolution as a 1x1 one of all places' channels: weight (S * O, S * C, 1, 1), bias (S * O)."""
        side = self.support.kernel_size[0]
        places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
        taps = [_tap(to[0] - at[0], to[1] - at[1], side) for at in places for to in places]
        inputs, outputs, count = self.support.in_channels, self.support.out_channels, len(places)
        by_tap = self.support.weight.permute(2, 3, 0, 1).reshape(-1, outputs, inputs)
        # A last tap of zeros joins the places that do not touch.
        chosen = F.pad(by_tap, (0, 0, 0, 0, 0, 1)).index_select(0, torch.tensor(taps, device=by_tap.device))
        dense = chosen.reshape(count, count, outputs, inputs).transpose(1, 2)
        bias: Tensor = self.support.get_parameter("bias")
        return dense.reshape(count * outputs, count * inputs, 1, 1), bias.repeat(count)


def _tap(down: int, right: int, side: int) -> int:
    """The index of the flattened kernel's tap at this offset from the centre; one past the last if there is none."""
    row, column = down + side // 2, right + side // 2
    return row * side + column if 0 <= row < side and 0 <= column < side else side * side
