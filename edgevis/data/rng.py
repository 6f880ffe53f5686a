"""Random draws that give the same numbers on every platform and with every version of Python and NumPy.

``random.Random.random()`` is the one method whose numbers Python promises to keep; NumPy promises that for no
generator, and neither does for shuffling or sampling. So these are made of it here.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def draw_at(seed: int, *position: int) -> random.Random:
    """The generator for one position in a run, such as (epoch, episode); positions are independent of each other."""
    key = "/".join(str(number) for number in (seed, *position))
    # Not hash(): it differs between processes for strings, and for integers it is the integer.
    return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))  # noqa: S311 - no secret


def below(draw: random.Random, count: int) -> int:
    """A whole number from 0 to ``count`` - 1."""
    return int(draw.random() * count)


def sample(draw: random.Random, items: Sequence[T], count: int) -> list[T]:
    """``count`` different ones of ``items`` in random order (the first steps of a Fisher-Yates shuffle)."""
    # Only the moved entries of an in-place shuffle, so that the cost depends on ``count`` and not on the items.
    moved: dict[int, int] = {}
    drawn = []
    for place in range(count):
        other = place + below(draw, len(items) - place)
        drawn.append(items[moved.get(other, other)])
        moved[other] = moved.get(place, place)
    return drawn


def shuffled(draw: random.Random, items: Sequence[T]) -> list[T]:
    """All ``items`` in random order."""
    return sample(draw, items, len(items))
