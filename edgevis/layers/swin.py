"""Shifted-window attention over a grid of any number of axes: 2-D for feature maps, 4-D for correlations.

Papers: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021; Cho, Hong,
Kim, "VAT: Cost Aggregation with 4D Convolutional Swin Transformer for Few-Shot Segmentation", ECCV 2022, which makes
the windows four-dimensional.
Provenance: our own code. Parameters below ``blocks`` bear the names of both papers' published code (MIT).
Licence: this file, as the rest of edgevis.

Where the published code shifts and partitions by reshaping to rank 10, which engines do not take, tokens here are
permuted once between two blocks by one Gather with a constant index; a block then sees windows of adjacent tokens.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from runtime.errors import InputError, ModelError

# What the published code adds to the attention logits of two tokens that lie side by side only because of the cyclic
# shift.
_ACROSS = -100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention inside of windows, with a bias for the offset of two tokens.

    Args:
        channels: C; a multiple of ``heads``.
        heads: Attention heads.
        window: Side of the window on each axis of the grid.
    """

    def __init__(self, channels: int, heads: int, window: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = prod(window)
        self.scale = (channels // heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        offsets = prod(2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, offset: Tensor, region: Tensor | None) -> Tensor:
        """Attend within each window.

        Args:
            x: (N, windows * tokens, C), the tokens of a window adjacent.
            offset: (tokens, tokens) int64, rows of the bias table.
            region: (windows, tokens) of any integer type: tokens attend to tokens of the same number; None: to all.

        Returns:
            (N, windows * tokens, C).
        """
        batch, length, channels = x.shape
        parts = self.qkv(x.reshape(-1, self.tokens, channels)).chunk(3, dim=-1)
        query, key, value = (
            part.reshape(-1, self.tokens, self.heads, channels // self.heads).transpose(1, 2) for part in parts
        )
        bias = self.relative_position_bias_table.index_select(0, offset.flatten())
        bias = bias.reshape(self.tokens, self.tokens, self.heads)
        logits = (query * self.scale) @ key.transpose(2, 3) + bias.permute(2, 0, 1)
        if region is not None:
            same = region.unsqueeze(1) == region.unsqueeze(2)
            mask = torch.where(same, 0.0, _ACROSS).unsqueeze(1)  # (windows, 1, tokens, tokens)
            logits = (logits.reshape(batch, -1, *logits.shape[1:]) + mask).reshape(logits.shape)
        attended = (logits.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, channels)
        result: Tensor = self.proj(attended)
        return result


class MLP(nn.Module):
    """Two layers with the exact GELU between them, four times wider inside: (..., C) -> (..., C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return result


class WindowBlock(nn.Module):
    """Attention inside of windows and an MLP, each after layer norm and added to its input; x as in the attention."""

    def __init__(self, channels: int, heads: int, window: tuple[int, ...]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels)

    def forward(self, x: Tensor, offset: Tensor, region: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), offset, region)
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class WindowTransformer(nn.Module):
    """Swin blocks over a grid: tokens (N, prod(grid), C) float32 in row order -> the same shape.

    Odd blocks shift the windows by half a window along every axis. Where the grid's smallest side is not above the
    window, windows are as large as that side and nothing is shifted, as in the published code.

    Args:
        grid: Sides of the grid, one per axis.
        channels: C; a multiple of ``heads``.
        depth: Number of blocks.
        heads: Attention heads.
        window: Side of a window.
        final_norm: Apply the layer norm ``norm`` to the result. It has parameters in any case: VAT's 4-D transformer
            carries one that it never applies, and counts it.

    Raises:
        ModelError: The window does not divide the grid, or the heads do not divide the channels.
    """

    def __init__(
        self, grid: tuple[int, ...], channels: int, *, depth: int, heads: int, window: int, final_norm: bool
    ) -> None:
        super().__init__()
        self.grid = grid
        shift = window // 2
        if min(grid) <= window:
            window, shift = min(grid), 0
        if any(side % window for side in grid):
            raise ModelError(f"a window of side {window} does not divide the grid {grid}")
        if channels % heads:
            raise ModelError(f"{heads} heads do not divide {channels} channels")
        self.final_norm = final_norm
        self.blocks = nn.ModuleList(WindowBlock(channels, heads, (window,) * len(grid)) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

        # The tokens' order in even and in odd blocks, and the permutations there, between and back.
        self.shifted = tuple(bool(index % 2 and shift) for index in range(depth))
        even, odd = _order(grid, window, 0), _order(grid, window, shift)
        offset = _offsets(window, len(grid))
        constants = {"enter": even, "offset": offset, "leave": even.argsort()}
        if any(self.shifted):
            constants["to_odd"] = even.argsort()[odd]
            constants["to_even"] = odd.argsort()[even]
            constants["leave"] = (odd if self.shifted[-1] else even).argsort()
            constants["region"] = _regions(grid, window, shift)
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = prod(self.grid)
        if x.dim() != 3 or x.shape[1] != length or x.shape[2] != self.norm.normalized_shape[0]:
            raise InputError(
                f"tokens have shape {tuple(x.shape)}; the transformer takes (N, {length}, "
                f"{self.norm.normalized_shape[0]}), the places of a grid {self.grid} in row order"
            )
        x = x.index_select(1, self.get_buffer("enter"))
        offset = self.get_buffer("offset")
        before = False
        for block, shifted in zip(self.blocks, self.shifted, strict=True):
            if shifted != before:
                x = x.index_select(1, self.get_buffer("to_odd" if shifted else "to_even"))
            x = block(x, offset, self.get_buffer("region") if shifted else None)
            before = shifted
        x = x.index_select(1, self.get_buffer("leave"))
        result: Tensor = self.norm(x) if self.final_norm else x
        return result


def _partition(places: Tensor, window: int) -> Tensor:
    """A grid of numbers -> (windows, tokens of a window)."""
    axes = places.dim()
    split = places.reshape([size for side in places.shape for size in (side // window, window)])
    ordered = split.permute(*range(0, 2 * axes, 2), *range(1, 2 * axes, 2))
    return ordered.reshape(-1, window**axes)


def _order(grid: tuple[int, ...], window: int, shift: int) -> Tensor:
    """(prod(grid),) int64: for each place in window order, the number of its token in row order."""
    places = torch.arange(prod(grid)).reshape(grid)
    rolled = torch.roll(places, (-shift,) * len(grid), tuple(range(len(grid))))
    return _partition(rolled, window).flatten()


def _regions(grid: tuple[int, ...], window: int, shift: int) -> Tensor:
    """(windows, tokens) int32: tokens of a shifted window that are neighbours in the grid have the same number."""
    regions = torch.zeros(grid, dtype=torch.int32)
    for axis, side in enumerate(grid):
        along = torch.zeros(side, dtype=torch.int32)
        along[side - window : side - shift] = 1
        along[side - shift :] = 2
        regions = 3 * regions + along.reshape([-1 if i == axis else 1 for i in range(len(grid))])
    return _partition(regions, window)


def _offsets(window: int, axes: int) -> Tensor:
    """(tokens, tokens) int64: the row of the bias table for the offset from token j to token i."""
    ticks = torch.arange(window)
    places = torch.cartesian_prod(*[ticks] * axes).reshape(-1, axes)
    difference = places.unsqueeze(1) - places.unsqueeze(0) + window - 1
    rows = torch.zeros(difference.shape[:2], dtype=torch.int64)
    for axis in range(axes):
        rows = rows * (2 * window - 1) + difference[:, :, axis]
    return rows
