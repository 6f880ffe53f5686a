"""Rows split into planes: a search reads one byte of each number, and the float32 values can be rebuilt exactly.

A number x of a row with the scale s (its largest magnitude is 127 s) is four bytes:

- ``coarse`` c and ``fine`` e, a byte each: x is within s / 512 of s (c + e / 256), and within s / 2 or so of s c;
- ``low``, the low 16 bits of the float32. The high 16 are those that come nearest to s (c + e / 256): the float32
  numbers of equal low bits are 2^16 apart in the order of all float32 numbers, and x is less than 2^15 away, where
  256 c + e is at least 256. For the numbers nearer to zero, some 2 in 100, the high 16 bits are in ``high``; zero
  itself has a c, an e and low bits of 0 and needs none.

A score by ``coarse`` alone is off by no more than the length of the query times the length of what is left out of the
row (Cauchy and Schwarz); the block keeps the largest of those lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.common.arrays import Array
from runtime.gallery.blocks import MAX_LENGTH, Vectors
from runtime.gallery.kernels import Kernel
from runtime.gallery.queries import Queries, Query

_SLICE = 256  # rows that are split or rebuilt at once: what is in between fits into the cache of a core
# Of the magnitude of 256 c + e. From 256 on the high bits follow from it; the rest is room for rounding.
_SMALL = 260
_SLACK = 2e-6  # of a score: the roundings of its float32 arithmetic, a few times 2^-24, with room


class PackedVectors:
    """Rows in planes, as :func:`packed` returns them.

    Attributes:
        coarse, fine: (N, D), stored as the kernel takes them.
        low: (N, D) uint16.
        scale: (N,) float32.
        high: (E,) uint16: high bits of the numbers near zero, row after row.
        high_ends: (N + 1,) int32: where each row's high bits begin.
        residual: The largest length of what ``coarse`` leaves out of a row.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        coarse: Array,
        fine: Array,
        low: Array,
        scale: Array,
        high: Array,
        high_ends: Array,
        residual: float,
    ) -> None:
        self.kernel = kernel
        self.coarse, self.fine, self.low, self.scale = coarse, fine, low, scale
        self.high, self.high_ends, self.residual = high, high_ends, residual
        self.dimension = int(coarse.shape[1])
        self._fine_residual = float(scale.max(initial=0)) * self.dimension**0.5 / 256 * (1 + 1e-3)

    def __len__(self) -> int:
        return len(self.scale)

    @property
    def nbytes(self) -> int:
        """The size of the planes in bytes."""
        return sum(plane.nbytes for plane in (self.coarse, self.fine, self.low, self.scale, self.high, self.high_ends))

    def take(self, offsets: Array) -> Array:
        result = np.empty((len(offsets), self.dimension), np.float32)
        for begin in range(0, len(offsets), _SLICE):
            part = offsets[begin : begin + _SLICE]
            self._rebuild(part, self._high_of(part), result[begin : begin + _SLICE])
        return result

    def all(self) -> Array:
        result = np.empty((len(self), self.dimension), np.float32)
        for begin in range(0, len(self), _SLICE):
            part = slice(begin, min(begin + _SLICE, len(self)))
            self._rebuild(part, self.high[self.high_ends[part.start] : self.high_ends[part.stop]], result[part])
        return result

    def keep(self, offsets: Array) -> PackedVectors:
        return gathered([(self, offsets)])

    def joined(self, second: Vectors) -> Vectors:
        if isinstance(second, PackedVectors) and self.goes_with(second):
            return gathered([(self, slice(None)), (second, slice(None))])
        return packed(np.concatenate([self.all(), second.all()]), self.kernel)

    def goes_with(self, second: PackedVectors) -> bool:
        """Whether rows of both can be concatenated as they are."""
        return second.kernel is self.kernel

    def scores(self, queries: Queries, out: Array) -> None:
        codes = queries.codes(1)
        codes.write_scores(self.kernel.product(self.coarse, codes.weights), self.scale, out)

    def bound(self, queries: Queries) -> Array:
        codes = queries.codes(1)
        return queries.norms * (self.residual + codes.loss * (MAX_LENGTH + self.residual) + _SLACK)

    def refined(self, query: Query, offsets: Array) -> Array:
        codes = query.codes
        result = np.empty((len(offsets), 1), np.float32)
        if len(offsets) * 4 > len(self):  # a pass over all costs less than to gather so many
            coarse, fine = (self.kernel.product(plane, codes.weights)[offsets] for plane in (self.coarse, self.fine))
            sums = coarse + fine * np.float64(1 / 256)
        else:
            both = np.concatenate([self.coarse[offsets], self.fine[offsets]])
            products = self.kernel.product(both, codes.weights)
            sums = products[: len(offsets)] + products[len(offsets) :] * np.float64(1 / 256)
        codes.write_scores(sums, self.scale[offsets], result)
        return np.asarray(result[:, 0])

    def refined_bound(self, query: Query) -> float:
        loss = float(query.codes.loss[0])
        return float(query.norm * (self._fine_residual + loss * (MAX_LENGTH + self._fine_residual) + _SLACK))

    def _high_of(self, offsets: Array) -> Array:
        """The high bits of these rows' numbers near zero, concatenated by row."""
        begins = self.high_ends[offsets]
        return np.asarray(self.high[_ranges(begins, self.high_ends[offsets + 1] - begins)])

    def _rebuild(self, part: Array | slice, high: Array, out: Array) -> None:
        bias = self.kernel.bias
        sums = self.coarse[part].astype(np.int16)
        sums *= 256
        sums += self.fine[part]
        if bias:
            sums -= np.int16(bias * 257 - 65536)  # 257 times the bias, in 16 bits that wrap around
        low = self.low[part]
        near = np.multiply(sums, _steps(self.scale[part])[:, None], dtype=np.float32)
        bits = out.view(np.int32)
        np.bitwise_and(near.view(np.int32), 0x7FFFFFFF, out=bits)
        bits += (low - bits.astype(np.uint16)).view(np.int16)
        bits |= near.view(np.int32) & np.int32(-0x80000000)
        small = np.abs(sums) < _SMALL
        small &= (sums != 0) | (low != 0)
        rows = np.flatnonzero(small)
        bits.reshape(-1)[rows] = ((high.astype(np.uint32) << 16) | low.reshape(-1)[rows]).view(np.int32)


def packed(rows: Array, kernel: Kernel) -> PackedVectors:
    """Split (N, D) float32 rows of a length of about one."""
    count, dimension = rows.shape
    coarse = np.empty((count, dimension), np.uint8 if kernel.bias else np.int8)
    fine, low = np.empty_like(coarse), np.empty((count, dimension), np.uint16)
    scale = np.empty(count, np.float32)
    high, counts, residual = [], [], 0.0
    for begin in range(0, count, _SLICE):
        part = slice(begin, begin + _SLICE)
        values = np.ascontiguousarray(rows[part])
        bits = values.view(np.uint32)
        scale[part] = np.maximum(values.max(axis=1), -values.min(axis=1)) / 127
        sums = np.rint(values / _steps(scale[part])[:, None]).astype(np.int16)
        low[part] = bits
        # What would look like zero but is not, such as minus zero, is taken for a step of ``fine``.
        sums[(sums == 0) & (low[part] == 0) & (bits != 0)] = 1
        tops = (sums + np.int16(128)) >> 8
        coarse[part], fine[part] = kernel.stored(tops), kernel.stored(sums - (tops << 8))
        left = values - tops * scale[part][:, None]
        residual = max(residual, float(np.einsum("nd,nd->n", left, left).max()))
        small = np.abs(sums) < _SMALL
        small &= bits != 0
        high.append((bits[small] >> 16).astype(np.uint16))
        counts.append(small.sum(axis=1))
    return PackedVectors(
        kernel,
        coarse=coarse,
        fine=fine,
        low=low,
        scale=scale,
        high=np.concatenate(high),
        high_ends=_ends(np.concatenate(counts)),
        residual=residual**0.5 * (1 + 1e-4) + 1e-7,
    )


def gathered(parts: Sequence[tuple[PackedVectors, Array | slice]]) -> PackedVectors:
    """Concatenate the selected rows of several parts, which must be compatible."""
    first = parts[0][0]
    ends, high = [], []
    for vectors, offsets in parts:
        begins = vectors.high_ends[:-1][offsets]
        counts = vectors.high_ends[1:][offsets] - begins
        ends.append(counts)
        high.append(vectors.high if isinstance(offsets, slice) else vectors.high[_ranges(begins, counts)])
    return PackedVectors(
        first.kernel,
        coarse=np.concatenate([vectors.coarse[offsets] for vectors, offsets in parts]),
        fine=np.concatenate([vectors.fine[offsets] for vectors, offsets in parts]),
        low=np.concatenate([vectors.low[offsets] for vectors, offsets in parts]),
        scale=np.concatenate([vectors.scale[offsets] for vectors, offsets in parts]),
        high=np.concatenate(high),
        high_ends=_ends(np.concatenate(ends)),
        residual=max(vectors.residual for vectors, _ in parts),
    )


def packs(dimension: int) -> bool:
    """Whether rows of this dimension can be split: the 32-bit sums of a product must hold."""
    return 2 <= dimension <= 65536


def _steps(scale: Array) -> Array:
    return np.asarray(scale * np.float32(1 / 256))


def _ranges(begins: Array, counts: Array) -> Array:
    """The concatenated integers of ranges with these starts and lengths."""
    ends = np.cumsum(counts)
    return np.asarray(np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(begins - (ends - counts), counts))


def _ends(counts: Array) -> Array:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
