"""How many of the worst layers must go back to float, found with few measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Shares of all layers that are tried one after the other until one holds; between the last two it is halved.
_SHARES = (1 / 32, 1 / 8, 1 / 2, 7 / 8)
# Halving stops where the two are so close, as a share of all layers: the layers then differ in little but noise.
_RESOLUTION = 1 / 32


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What the search came to.

    Attributes:
        excluded: How many layers went back.
        drop: What is lost with them in float.
        holds: Whether that is within what was allowed; if not, ``excluded`` is what lost the least.
        trials: How many graphs were measured.
    """

    excluded: int
    drop: float
    holds: bool
    trials: int


def search(order: Sequence[str], measure: Callable[[frozenset[str]], float], *, max_drop: float) -> SearchResult:
    """The fewest layers in float with which no more than ``max_drop`` is lost.

    It takes for granted that more layers in float lose less; where they do not, by chance, it may end with a few
    layers more than needed. What it returns has been measured.

    Args:
        order: The layers, those that shall go back first in front.
        measure: What is lost with these layers in float.
        max_drop: What may be lost.
    """
    measured: dict[int, float] = {}

    def drop(count: int) -> float:
        if count not in measured:
            measured[count] = measure(frozenset(order[:count]))
        return measured[count]

    total = len(order)
    steps = sorted({0, *(max(1, round(share * total)) for share in _SHARES)} if total else {0})
    holding = next((count for count in steps if drop(count) <= max_drop), None)
    if holding is None:
        best = min(measured, key=lambda count: measured[count])
        return SearchResult(best, measured[best], False, len(measured))
    failing = max((count for count in measured if count < holding), default=holding)
    while holding - failing > max(1, round(_RESOLUTION * total)):
        middle = (holding + failing) // 2
        if drop(middle) <= max_drop:
            holding = middle
        else:
            failing = middle
    return SearchResult(holding, measured[holding], True, len(measured))
