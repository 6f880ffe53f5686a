"""Tensors of pixels at rest: the few values of each channel, the levels, and bytes that are indices into them.

A pixel has 256 values, and preprocessing maps each to one float32 per channel. A byte for each pixel loses nothing,
takes a quarter of the memory, and deflates well where neighbours are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.errors import EdgevisError

_LEVELS, _INDICES = "/levels", "/indices"
_MOST = 256


def levelled(tensors: Sequence[Array]) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.uint8]]] | None:
    """The values of each channel, and the tensors as indices into them; :func:`from_levels` is the exact inverse.

    Args:
        tensors: Each (channels, height, width) float32, with the same number of channels, at least one of each.

    Returns:
        Levels (channels, at most 256) float32, ascending, the last one repeated where a channel has fewer; of each
        tensor its indices (channels, height, width) uint8. None where a channel has more than 256 values.
    """
    channels = []
    for channel in range(len(tensors[0])):
        # By their bits: -0.0 and 0.0 are two values, and so are two NaN.
        parts = [np.unique(tensor[channel].view(np.uint32)) for tensor in tensors]
        bits = np.unique(np.concatenate(parts))
        if len(bits) > _MOST:
            return None
        channels.append(bits)
    most = max(len(bits) for bits in channels)
    orders = [np.argsort(bits.view(np.float32), kind="stable") for bits in channels]
    levels = [
        np.pad(bits[order].view(np.float32), (0, most - len(bits)), mode="edge")
        for bits, order in zip(channels, orders, strict=True)
    ]
    # Ascending levels, so that the indices of neighbours that are alike are alike, too.
    ranks = [np.argsort(order).astype(np.uint8) for order in orders]
    return np.stack(levels), [
        np.stack(
            [
                rank[np.searchsorted(bits, plane.view(np.uint32))]
                for bits, rank, plane in zip(channels, ranks, tensor, strict=True)
            ]
        )
        for tensor in tensors
    ]


def from_levels(levels: Array, indices: Array) -> npt.NDArray[np.float32]:
    """The tensor (channels, height, width) float32 that :func:`levelled` took.

    Args:
        levels: (channels, 1 to 256) float32.
        indices: (channels, height, width) uint8.

    Raises:
        ValueError: The arrays are others, or an index is beyond the levels; the message says which.
    """
    if levels.dtype != np.float32 or levels.ndim != 2 or not 1 <= levels.shape[1] <= _MOST:
        raise ValueError(f"levels are {levels.shape} {levels.dtype}; needed: (channels, 1 to {_MOST}) float32")
    if indices.dtype != np.uint8 or indices.ndim != 3 or len(indices) != len(levels):
        raise ValueError(
            f"indices are {indices.shape} {indices.dtype}; needed: ({len(levels)}, height, width) uint8, one row of "
            "levels for each channel"
        )
    if indices.size and int(indices.max()) >= levels.shape[1]:
        raise ValueError(f"index {indices.max()} is beyond the {levels.shape[1]} levels")
    tensor = np.empty(indices.shape, np.float32)
    for channel, values, plane in zip(tensor, levels, indices, strict=True):
        channel[:] = values[plane]
    return tensor


def differences(array: npt.NDArray[np.uint8], *, axis: int) -> npt.NDArray[np.uint8]:
    """Each byte less the one before it along an axis, modulo 256: areas and gradients deflate to little."""
    return np.diff(array, axis=axis, prepend=np.uint8(0))


def sums(array: npt.NDArray[np.uint8], *, axis: int) -> npt.NDArray[np.uint8]:
    """The inverse of :func:`differences`."""
    return np.cumsum(array, axis=axis, dtype=np.uint8)


def compact(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays as they go into a file: those of pixels as ``NAME/levels`` and ``NAME/indices``, others as they are.

    An array is one of pixels if it is (N, channels, height, width) float32, no channel has more than 256 values, and it
    becomes smaller. Its indices are less those of the channel before, and of the pixel above. :func:`expand` is the
    exact inverse.
    """
    stored: dict[str, Array] = {}
    for name, array in arrays.items():
        found = levelled(list(array)) if array.dtype == np.float32 and array.ndim == 4 and array.size else None
        if found is None or found[0].nbytes + array.size >= array.nbytes:
            stored[name] = array
        else:
            levels, indices = found
            stored[f"{name}{_LEVELS}"] = levels
            stored[f"{name}{_INDICES}"] = differences(differences(np.stack(indices), axis=1), axis=2)
    return stored


def expand(stored: Mapping[str, Array], *, error: type[EdgevisError], max_bytes: int, where: str) -> dict[str, Array]:
    """The arrays that :func:`compact` took, bit by bit.

    Args:
        stored: What a file holds, which may come from anywhere.
        error: The class of the error when it is not what :func:`compact` returns.
        max_bytes: Refuse arrays that would have more bytes together.
        where: The file, for the message.

    Raises:
        error: An array of pixels lacks its levels, does not fit them, or is there twice; or all would be too large.
    """
    size = sum(4 * array.size if name.endswith(_INDICES) else array.nbytes for name, array in stored.items())
    if size > max_bytes:
        raise error(f"{where} would unpack to {size} bytes; at most {max_bytes} are read")
    arrays: dict[str, Array] = {}
    for key, array in stored.items():
        if key.endswith(_LEVELS) and f"{key.removesuffix(_LEVELS)}{_INDICES}" in stored:
            continue
        name = key.removesuffix(_INDICES)
        if name in arrays:
            raise error(f"{where} holds {name} twice; build the bundle again")
        arrays[name] = array if name == key else _expanded(stored, name, array, error, where)
    return arrays


def _expanded(
    stored: Mapping[str, Array], name: str, indices: Array, error: type[EdgevisError], where: str
) -> npt.NDArray[np.float32]:
    levels = stored.get(f"{name}{_LEVELS}")
    try:
        if levels is None:
            raise ValueError("no levels")
        if indices.dtype != np.uint8 or indices.ndim != 4:
            raise ValueError(f"indices are {indices.shape} {indices.dtype}; needed: (N, channels, height, width) uint8")
        tensor = np.empty(indices.shape, np.float32)
        for row, planes in zip(tensor, indices, strict=True):
            row[:] = from_levels(levels, sums(sums(planes, axis=1), axis=0))
    except ValueError as cause:
        raise error(f"{where}: {name} is damaged: {cause}; build the bundle again") from cause
    return tensor
