"""The number of most sensitive layers that must stay float, found with few measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Shares of all layers that are tried one after the other until one holds; between the last two it is halved.
_SHARES = (1 / 32, 1 / 8, 1 / 2, 7 / 8)
# Halving stops where the two are so close, as a share of all layers: the layers then differ in little but noise.
_RESOLUTION = 1 / 32


@dataclass(frozen=True, slots=True)
class Exclusions:
    """The number of layers that stay float, and the graph's drop with them.

    Attributes:
        count: How many layers, from the front of the order, stay float.
        drop: The measured drop with them in float.
        holds: Whether ``drop`` is within the allowed one; if not, ``count`` is the trial with the least drop.
        trials: How many counts were measured.
    """

    count: int
    drop: float
    holds: bool
    trials: int


def fewest_exclusions(
    order: Sequence[str],
    measure: Callable[[frozenset[str]], float],
    *,
    max_drop: float,
    together: int = 0,
    naive_drop: float | None = None,
) -> Exclusions:
    """The fewest excluded layers with which the drop is at most ``max_drop``.

    The search assumes that the drop falls as more layers are excluded; where measurement noise contradicts that, the
    result may have a few layers more than needed. The result's drop is always a measured one.

    Args:
        order: The layers, the first to be excluded in front.
        measure: The drop with these layers in float.
        max_drop: The allowed drop.
        together: How many of the first layers are excluded together or not at all: they are known to be sensitive,
            so that the search need not divide them.
        naive_drop: The drop without any excluded layer, where it is known.
    """
    measured: dict[int, float] = {} if naive_drop is None else {0: naive_drop}

    def drop(count: int) -> float:
        if count not in measured:
            measured[count] = measure(frozenset(order[:count]))
        return measured[count]

    total = len(order)
    rest = total - together
    shares = {together + max(1, round(share * rest)) for share in _SHARES} if rest else set()
    steps = sorted({0, together, *shares})
    holding = next((count for count in steps if drop(count) <= max_drop), None)
    if holding is None:
        best = min(measured, key=lambda count: measured[count])
        return Exclusions(best, measured[best], False, len(measured))
    failing = max((count for count in measured if count < holding), default=holding)
    while holding > together and holding - failing > max(1, round(_RESOLUTION * total)):
        middle = (holding + failing) // 2
        if drop(middle) <= max_drop:
            holding = middle
        else:
            failing = middle
    return Exclusions(holding, measured[holding], True, len(measured))
