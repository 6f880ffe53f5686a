"""VAT's 4-D convolution: a convolution of each grid, with the other grid max-pooled to where the output needs it.

Paper: Cho, Hong, Kim, "VAT: Cost Aggregation with 4D Convolutional Swin Transformer for Few-Shot Segmentation", ECCV
2022, section 4.2 (volumetric embedding module).
Provenance: our own code; ``query_conv`` and ``supp_conv`` are the names of the published code (MIT), where both are 2-D
convolutions: the weight of ``query_conv`` has one axis of length 1 more here.
Licence: this file, as the rest of edgevis.

A 4-D tensor is kept as (N, C, Q, S): both grids flattened, query places first, in row order. So no tensor has a rank
above 5, and group norm works on it as it stands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevis.layers.group_norm import GroupNorm
from runtime.errors import InputError

Grid = tuple[int, int]


class PooledConv4d(nn.Module):
    """The sum of two 3x3 convolutions with bias, one over the query grid and one over the support grid.

    The query convolution strides over the query grid and sees the support grid max-pooled by the support stride; the
    support convolution the other way round. A pool's window is its stride; a smaller rest at the end counts as a
    window of its own. Each side n becomes ceil(n / stride).
    """

    def __init__(self, inputs: int, outputs: int, *, query_stride: int, support_stride: int) -> None:
        super().__init__()
        self.query_stride = query_stride
        self.support_stride = support_stride
        # Over (N, C, h, w, S) as it stands. As a 2-D convolution of N * S maps it would need two transpositions, which
        # take longer than the convolution: 273 ms against 58 ms in ONNX Runtime 1.31 for VAT's first one of stage 2.
        self.query_conv = nn.Conv3d(inputs, outputs, (3, 3, 1), (query_stride, query_stride, 1), padding=(1, 1, 0))
        self.supp_conv = nn.Conv2d(inputs, outputs, 3, support_stride, padding=1)

    def output_grids(self, query_grid: Grid, support_grid: Grid) -> tuple[Grid, Grid]:
        """The sides of both grids after the convolution."""
        return _strided(query_grid, self.query_stride), _strided(support_grid, self.support_stride)

    def forward(self, x: Tensor, query_grid: Grid, support_grid: Grid) -> Tensor:
        """Convolve.

        Args:
            x: (N, C, Q, S) float32.
            query_grid: Sides (h, w) of the query grid; Q is their product.
            support_grid: Sides of the support grid; S is their product.

        Returns:
            (N, outputs, Q', S') with the grids of :meth:`output_grids`.

        Raises:
            InputError: ``x`` has another rank, or other numbers of places or channels.
        """
        channels = self.query_conv.in_channels
        query_places, support_places = query_grid[0] * query_grid[1], support_grid[0] * support_grid[1]
        if x.dim() != 4 or tuple(x.shape[1:]) != (channels, query_places, support_places):
            raise InputError(
                f"a tensor of shape {tuple(x.shape)}; the convolution over grids {query_grid} and {support_grid} "
                f"takes (N, {channels}, {query_places}, {support_places})"
            )
        batch = x.shape[0]
        queries = self._pool_support(x, support_grid)
        queries = self.query_conv(queries.reshape(batch, channels, *query_grid, -1)).flatten(2, 3)
        supports = self._pool_query(x, query_grid).transpose(1, 2)  # (N, Q', C, S)
        supports = self.supp_conv(supports.reshape(-1, channels, *support_grid)).flatten(2)
        supports = supports.reshape(batch, -1, *supports.shape[1:]).transpose(1, 2)
        result: Tensor = queries + supports
        return result

    def _pool_support(self, x: Tensor, grid: Grid) -> Tensor:
        """(N, C, Q, S) -> (N, C, Q, S')."""
        if self.support_stride == 1:
            return x
        batch, channels, query_places, _ = x.shape
        # One channel each: ONNX Runtime 1.31 would bring many channels to its blocked layout and back, a copy of all.
        maps = x.reshape(-1, 1, *grid)
        pooled = nn.functional.max_pool2d(maps, self.support_stride, ceil_mode=True)
        return pooled.reshape(batch, channels, query_places, -1)

    def _pool_query(self, x: Tensor, grid: Grid) -> Tensor:
        """(N, C, Q, S) -> (N, C, Q', S), without bringing the query grid to the end: that would copy it all twice."""
        stride = self.query_stride
        if stride == 1:
            return x
        batch, channels, _, support = x.shape
        rows = _maximum(x.reshape(batch, channels, grid[0], grid[1] * support), stride)
        columns = _maximum(rows.reshape(batch, -1, grid[1], support), stride)
        return columns.reshape(batch, channels, -1, support)


class PooledBlock4d(nn.Module):
    """:class:`PooledConv4d`, group norm over channels and places, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, query_stride: int, support_stride: int, groups: int) -> None:
        super().__init__()
        self.conv = PooledConv4d(inputs, outputs, query_stride=query_stride, support_stride=support_stride)
        self.norm = GroupNorm(groups, outputs)

    def forward(self, x: Tensor, query_grid: Grid, support_grid: Grid) -> Tensor:
        return torch.relu(self.norm(self.conv(x, query_grid, support_grid)))


def _maximum(x: Tensor, stride: int) -> Tensor:
    """(N, C, n, m) -> (N, C, ceil(n / stride), m): maxima of ``stride`` neighbours on the third axis."""
    rest = x.shape[2] % stride
    if rest:
        last = x[:, :, -1:]
        x = torch.cat([x] + [last] * (stride - rest), dim=2)
    batch, channels, places, width = x.shape
    return x.reshape(batch, channels, places // stride, stride, width).amax(dim=3)


def _strided(grid: Grid, stride: int) -> Grid:
    return -(-grid[0] // stride), -(-grid[1] // stride)
