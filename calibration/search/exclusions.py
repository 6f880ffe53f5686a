"""The layers that must stay float, found with few measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Shares of the layers in order that are tried one after the other until one holds; between the last two it is halved.
_SHARES = (1 / 32, 1 / 8, 1 / 2, 7 / 8)
# Halving stops where the two are so close, as a share of all layers: the layers then differ in little but noise.
_RESOLUTION = 1 / 32


@dataclass(frozen=True, slots=True)
class Exclusions:
    """The layers that stay float, and the graph's drop with them.

    Attributes:
        layers: The layers that stay float, in the order in which they were excluded.
        drop: The measured drop with them in float.
        holds: Whether ``drop`` is within the allowed one; if not, the trial with the least drop is the result.
        trials: How many sets of layers were measured.
    """

    layers: tuple[str, ...]
    drop: float
    holds: bool
    trials: int


def fewest_exclusions(
    order: Callable[[], Sequence[str]],
    measure: Callable[[frozenset[str]], float],
    *,
    max_drop: float,
    first: Sequence[str] = (),
    naive_drop: float | None = None,
) -> Exclusions:
    """The fewest excluded layers with which the drop is at most ``max_drop``.

    The search assumes that the drop falls as more layers are excluded; where measurement noise contradicts that, the
    result may have a few layers more than needed. The result's drop is always a measured one.

    Args:
        order: Makes the order of the layers, the first to be excluded in front; asked only where neither nothing nor
            ``first`` suffices, because the order is measured.
        measure: The drop with these layers in float.
        max_drop: The allowed drop.
        first: Layers that are excluded before all others, together or not at all.
        naive_drop: The drop without any excluded layer, where it is known.
    """
    layers = list(first)
    measured: dict[int, float] = {} if naive_drop is None else {0: naive_drop}

    def drop(count: int) -> float:
        if count not in measured:
            measured[count] = measure(frozenset(layers[:count]))
        return measured[count]

    def result(count: int, *, holds: bool) -> Exclusions:
        return Exclusions(tuple(layers[:count]), measured[count], holds, len(measured))

    for count in dict.fromkeys((0, len(layers))):
        if drop(count) <= max_drop:
            return result(count, holds=True)
    layers += [layer for layer in order() if layer not in set(first)]
    total, failing = len(layers), len(first)
    steps = sorted({failing + max(1, round(share * (total - failing))) for share in _SHARES}) if total > failing else []
    holding = next((count for count in steps if drop(count) <= max_drop), None)
    if holding is None:
        return result(min(measured, key=lambda count: measured[count]), holds=False)
    failing = max(count for count in measured if count < holding)
    while holding - failing > max(1, round(_RESOLUTION * total)):
        middle = (holding + failing) // 2
        if drop(middle) <= max_drop:
            holding = middle
        else:
            failing = middle
    return result(holding, holds=True)
