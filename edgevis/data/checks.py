"""Checks that readers and samplers share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from runtime.errors import InputError, SourceError

Label: TypeAlias = str | int

_INTEGER = re.compile(r"-?[0-9]{1,18}")


def at_least(name: str, value: int, least: int) -> int:
    """``value`` unchanged, if it is large enough.

    Raises:
        InputError: It is not a whole number, or smaller than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} is {value!r}; allowed: a whole number of {least} or more")
    return int(value)


def integer(text: str, where: str) -> int:
    """The whole number that a field of a table holds; ``where`` is for messages.

    Raises:
        SourceError: It holds something else.
    """
    if not _INTEGER.fullmatch(text.strip()):
        raise SourceError(f"{where} is {text!r}; a whole number is needed")
    return int(text)


def positions_by_label(labels: ArrayLike, among: Iterable[int] | None = None) -> dict[Label, list[int]]:
    """The positions of each label; labels in order of first occurrence.

    Args:
        labels: (N,) strings or integers.
        among: Positions to look at; None for all.

    Raises:
        InputError: Not a list of strings or integers, an empty one, or a position is outside of it or named twice.
    """
    table = np.asarray(labels)
    if table.ndim != 1 or (table.size and table.dtype.kind not in "iuU"):
        raise InputError(f"labels have shape {table.shape} and dtype {table.dtype}; allowed: (N,) strings or integers")
    positions: Sequence[int] = range(len(table)) if among is None else [int(position) for position in among]
    if not positions:
        raise InputError("there are no images to draw from")
    if among is not None:
        if min(positions) < 0 or max(positions) >= len(table):
            raise InputError(
                f"positions reach from {min(positions)} to {max(positions)}; there are {len(table)} labels"
            )
        if len(set(positions)) != len(positions):
            raise InputError("a position is named twice: an image could then be its own query")
    by_label: dict[Label, list[int]] = {}
    values: list[Label] = table.tolist()
    for position in positions:
        by_label.setdefault(values[position], []).append(position)
    return by_label
