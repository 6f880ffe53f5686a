"""The values that an option of a model or of a recipe takes: a text for messages, and the test."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.common.json_data import shown
from runtime.errors import ModelError


@dataclass(frozen=True, slots=True)
class Allowed:
    """The allowed values of an option.

    Attributes:
        text: In words, as it follows "allowed: ".
        holds: Whether it takes a value of any type.
    """

    text: str
    holds: Callable[[Any], bool]

    def refusal(self, name: str, value: object) -> str | None:
        """The error sentence for a value; None if the value is allowed."""
        return None if self.holds(value) else f"{name} is {shown(value)}; allowed: {self.text}"

    def require(self, name: str, value: object) -> None:
        """Refuse a value of a model's option with a ModelError that says what is allowed."""
        refusal = self.refusal(name, value)
        if refusal is not None:
            raise ModelError(refusal)


def whole(least: int, most: int | None = None, *, multiple: int = 1) -> Allowed:
    """Whole numbers from ``least`` to ``most`` in steps of ``multiple``."""
    text = "a whole number" if multiple == 1 else f"multiples of {multiple}"
    text += f" of {least} or more" if most is None else f" from {least} to {most}"

    def holds(value: Any) -> bool:
        in_range = _is_whole(value) and value >= least and (most is None or value <= most)
        return in_range and (value - least) % multiple == 0

    return Allowed(text, holds)


def number(least: float, most: float | None = None, *, above: bool = False, below: bool = False) -> Allowed:
    """Finite numbers from ``least`` to ``most``; with ``above`` or ``below`` the ends are excluded."""
    low = f"above {least:g}" if above else f"from {least:g}"
    if most is None:
        text = f"a number {low}" if above else f"a number of {least:g} or more"
    else:
        text = f"a number {low} to {'below ' if below else ''}{most:g}"

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
            return False
        high_enough = value > least if above else value >= least
        return high_enough and (most is None or (value < most if below else value <= most))

    return Allowed(text, holds)


def one_of(*choices: Any) -> Allowed:
    """One of the listed values; ``True`` does not count as 1."""

    def holds(value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in choices)

    return Allowed(", ".join(_spelled(choice) for choice in choices), holds)


def several(each: Allowed, *, least: int = 1, more: str = "", holds: Callable[[Any], bool] | None = None) -> Allowed:
    """A list of allowed values; ``more`` describes the condition ``holds`` on the whole list."""
    count = "a list" if least == 0 else f"a list of {least} or more"

    def all_hold(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or len(value) < least or not all(map(each.holds, value)):
            return False
        return holds is None or holds(value)

    return Allowed(f"{count}, each {each.text}{more}", all_hold)


def or_null(other: Allowed) -> Allowed:
    """The same values, or null."""
    return Allowed(f"{other.text}, or null", lambda value: value is None or other.holds(value))


TEXT = Allowed("a text", lambda value: isinstance(value, str))
SWITCH = Allowed("true, false", lambda value: isinstance(value, bool))

_MAX_CLASSES = 1_000_000
CLASSES = Allowed(f"1 or more, a whole number up to {_MAX_CLASSES}", whole(1, _MAX_CLASSES).holds)
"""The outputs of a head over training classes."""
CLASSES_OR_NONE = Allowed(
    f"0 (no classifier) or more, a whole number up to {_MAX_CLASSES}", whole(0, _MAX_CLASSES).holds
)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond all floats
        return False


def _spelled(choice: object) -> str:
    return "null" if choice is None else str(choice)
