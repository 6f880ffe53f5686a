"""The members of a detection that the writers read, and its rounding as text."""

from __future__ import annotations

from typing import Protocol


class LabelledBox(Protocol):
    """A detection; :class:`runtime.results.Detection` is one."""

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in pixels of the image."""
        ...

    @property
    def score(self) -> float:
        """0..1."""
        ...

    @property
    def label(self) -> str:
        """The class's name."""
        ...

    @property
    def class_id(self) -> int:
        """The class's place among the model's labels."""
        ...


def sized_box(box_xyxy: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Left, top, width and height of a box, to hundredths of a pixel."""
    left, top, right, bottom = box_xyxy
    return round(left, 2), round(top, 2), round(right - left, 2), round(bottom - top, 2)
