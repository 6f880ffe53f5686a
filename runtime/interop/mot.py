"""Detections and tracks as MOT-challenge text, which motmetrics and TrackEval read.

Format: Milan, Leal-Taixé, Reid, Roth, Schindler, "MOT16: A Benchmark for Multi-Object Tracking", 2016, section 3.3:
``frame, id, left, top, width, height, confidence, -1, -1, -1``. Frames count from 1, and so do a box's pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from runtime.interop.boxes import sized_box

NO_TRACK = -1
"""The identity of what is detected and not tracked."""


class ScoredBox(Protocol):
    """A detection or a tracked object; the latter has ``track``, an int, as well."""

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in pixels of the image."""
        ...

    @property
    def score(self) -> float:
        """0..1."""
        ...


def mot_lines(frame: int, objects: Iterable[ScoredBox]) -> list[str]:
    """The lines of one frame.

    Args:
        frame: The frame's number, the first is 0.
        objects: Detections, or tracked objects with an attribute ``track``. The confidence is the detector's score,
            ``detection_score`` of those: their ``score`` is that of the identity.
    """
    lines = []
    for item in objects:
        left, top, width, height = sized_box(item.box_xyxy)
        track, score = getattr(item, "track", NO_TRACK), getattr(item, "detection_score", item.score)
        place = f"{left + 1:.2f},{top + 1:.2f},{width:.2f},{height:.2f}"
        lines.append(f"{frame + 1},{track},{place},{score:.4f},-1,-1,-1")
    return lines
