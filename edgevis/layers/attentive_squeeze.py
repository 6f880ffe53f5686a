"""ASNet's attentive squeeze layer: attention over the support places of each query place, fewer places at the end.

Paper: Kang, Cho, "Integrative Few-Shot Learning for Classification and Segmentation", CVPR 2022, section 5.2.
Provenance: our own code; parameters bear the names of the published code (MIT), whose 3-D convolutions with a kernel of
1 on the first axis are 2-D convolutions here, with weights of one axis less.
Licence: this file, as the rest of edgevis.

A 4-D tensor is kept as (N, C, Q, S): both grids flattened, query places first, in row order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgevis.layers.group_norm import GroupNorm
from runtime.errors import InputError, ModelError

Grid = tuple[int, int]

# A ceiling under which no logit that counts lies, and one that none reaches; the published code sets masked logits to
# -1e9. Finite, and finite in float16 too, so that a mask without any support place gives uniform attention and no NaN.
_MASKED, _SEEN = -3e4, 3e4

# Attention logits of one image pair that are in memory at once, 64 MB.
_PIECE = 1 << 24


class SqueezeAttention(nn.Module):
    """Attention over support places with a strided query: see :class:`AttentiveSqueeze`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int,
        padding: int,
        pool_keys: bool,
        heads: int,
        groups: int,
    ) -> None:
        super().__init__()
        hidden = outputs // 2
        if hidden % heads:
            raise ModelError(f"{heads} heads do not divide {hidden} channels, half of the layer's {outputs} outputs")
        self.heads = heads
        keeps_shape = inputs == outputs and kernel == 1 and stride == 1
        self.short_cut = (
            nn.Identity()
            if keeps_shape
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), GroupNorm(groups, outputs)
            )
        )
        self.qhead = nn.Conv2d(inputs, hidden, kernel, stride, padding)
        of_keys = (kernel, stride, padding) if pool_keys else (1, 1, 0)
        self.khead = nn.Conv2d(inputs, hidden, *of_keys)
        self.vhead = nn.Conv2d(inputs, hidden, *of_keys)
        self.agg = nn.Sequential(
            GroupNorm(groups, hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            GroupNorm(groups, outputs),
            nn.ReLU(),
        )
        self.out_norm = GroupNorm(groups, outputs)

    def forward(self, x: Tensor, support_grid: Grid, attend: Tensor) -> Tensor:
        batch, channels, query_places, _ = x.shape
        maps = x.transpose(1, 2).reshape(-1, channels, *support_grid)  # (N * Q, C, h, w)

        def heads_of(part: Tensor) -> Tensor:
            """(N * Q, hidden, h', w') -> (N, Q * heads, hidden / heads, h' * w')."""
            width = part.shape[1] // self.heads
            return part.reshape(batch, query_places * self.heads, width, part.shape[2] * part.shape[3])

        query, key, value = (heads_of(head(maps)) for head in (self.qhead, self.khead, self.vhead))
        if tuple(attend.shape[1:]) != (key.shape[3],):
            raise InputError(
                f"the flags of the places to attend to have shape {tuple(attend.shape)}; allowed: (N, {key.shape[3]})"
            )
        # A ceiling and not a Where on the logits, because Min passes over them only once.
        ceiling = torch.where(attend > 0, _SEEN, _MASKED).reshape(batch, 1, 1, -1)
        attended = _attended(query, key, value, ceiling)
        attended = attended.reshape(batch, query_places, -1, attended.shape[3]).transpose(1, 2)
        result = self.agg(attended)
        if isinstance(self.short_cut, nn.Identity):
            return self.out_norm(result + x)  # type: ignore[no-any-return]
        convolution, norm = self.short_cut
        short = convolution(maps).flatten(2).reshape(batch, query_places, result.shape[1], -1).transpose(1, 2)
        return self.out_norm(result + torch.relu(norm(short)))  # type: ignore[no-any-return]


def _attended(query: Tensor, key: Tensor, value: Tensor, ceiling: Tensor) -> Tensor:
    """(N, rows, c, S'), (N, rows, c, keys) twice and (N, 1, 1, keys) -> (N, rows, c, S').

    Piece by piece: the logits of all rows at once are by far the layer's largest tensor.
    """
    rows = query.shape[1]
    pieces = -(-rows * query.shape[3] * key.shape[3] // _PIECE)
    if pieces > 1:
        queries, keys, values = (torch.split(part, -(-rows // pieces), dim=1) for part in (query, key, value))
        return torch.cat([_attended(q, k, v, ceiling) for q, k, v in zip(queries, keys, values, strict=True)], dim=1)
    weights = torch.minimum(query.transpose(2, 3) @ key, ceiling).softmax(dim=-1)
    return value @ weights.transpose(2, 3)


class SqueezeFeedForward(nn.Module):
    """Two 1x1 convolutions with group norm and ReLU between, added to the input, group norm."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.ff = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 1, bias=False),
            GroupNorm(groups, channels // 2),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 1, bias=False),
        )
        self.out_norm = GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out_norm(self.ff(x) + x)
        return result


class AttentiveSqueeze(nn.Module):
    """Attention over the support places of each query place, then a feed-forward layer.

    The query of the attention is a strided convolution of the support grid, so the layer's output has fewer support
    places than its input; keys and values stand at all of them, or at as few (``pool_keys``).

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output; half of them are a multiple of ``heads``.
        kernel: Side of the convolution's kernel.
        stride: Stride of the convolution.
        padding: Padding of the convolution.
        pool_keys: Convolve keys and values like the query, instead of 1x1.
        heads: Attention heads; the logits are not scaled.
        groups: Groups of all group norms.

    Raises:
        ModelError: The heads do not divide half of the outputs.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int,
        padding: int,
        pool_keys: bool = False,
        heads: int = 8,
        groups: int = 4,
    ) -> None:
        super().__init__()
        self.inputs, self.kernel, self.stride, self.padding, self.pool_keys = inputs, kernel, stride, padding, pool_keys
        self.attn = SqueezeAttention(
            inputs,
            outputs,
            kernel=kernel,
            stride=stride,
            padding=padding,
            pool_keys=pool_keys,
            heads=heads,
            groups=groups,
        )
        self.ff = SqueezeFeedForward(outputs, groups=groups)

    def output_side(self, side: int) -> int:
        """The support grid's side after the layer."""
        return (side + 2 * self.padding - self.kernel) // self.stride + 1

    def key_side(self, side: int) -> int:
        """The side of the grid on which keys and values stand: that of ``attend``."""
        return self.output_side(side) if self.pool_keys else side

    def forward(self, x: Tensor, support_grid: Grid, attend: Tensor) -> Tensor:
        """Squeeze the support grid.

        Args:
            x: (N, C, Q, S) float32.
            support_grid: Sides (h, w) of the support grid; S is their product.
            attend: (N, keys) float32: places with 0 get no attention, unless all have 0.

        Returns:
            (N, outputs, Q, S'), S' as :meth:`output_side` says of each side.

        Raises:
            InputError: A shape is another one.
        """
        if x.dim() != 4 or x.shape[1] != self.inputs or x.shape[3] != support_grid[0] * support_grid[1]:
            raise InputError(
                f"a tensor of shape {tuple(x.shape)}; the layer takes (N, {self.inputs}, Q, S) with "
                f"S = {support_grid[0]} * {support_grid[1]}"
            )
        result: Tensor = self.ff(self.attn(x, support_grid, attend))
        return result
