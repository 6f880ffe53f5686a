"""The settings of a pipeline that most programs leave as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from runtime.errors import InputError

ANY_MARGIN = 2.0
"""A ``holder_margin`` that every score keeps to: the width of -1..1."""


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How a pipeline tracks and identifies.

    Attributes:
        first_views: So many views of a new track are embedded as soon as can be; they decide its identity.
        first_views_every: Frames between those, and before a changed view is embedded.
        patience_s: Seconds without a good view after which a poor one – cut off, blurred, dark – is used, and after
            which a track gets a name in any case.
        reassociate_s: Seconds for which a lost track's number waits for an object that looks the same.
        detection_score: The least score of detections that the tracker sees; None for the bundle's own.
        max_unknowns: The most unknowns that are remembered; of labels, the most by camera.
        forget_unknown_after_s: Seconds after which an unknown that was not seen is forgotten, and who had a label.
        holder_margin: How far a track's score for a label may be below that of another object that had the label before
            the same camera, where a label is one individual; 2, the width of all scores, is any.
        tracker: The name of a file in ``runtime/tracking/trackers``.
        tracker_settings: What the tracker is given, see its file.
    """

    first_views: int = 3
    first_views_every: int = 2
    patience_s: float = 1.0
    reassociate_s: float = 30.0
    detection_score: float | None = 0.1
    max_unknowns: int = 1000
    forget_unknown_after_s: float = 86_400.0
    holder_margin: float = 0.15
    tracker: str = "bytetrack"
    tracker_settings: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        whole = ("first_views", "first_views_every", "max_unknowns")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in whole and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{item.name} is {value!r}; allowed: a whole number >= 1")
            if item.name.endswith("_s") and (not isinstance(value, (int, float)) or not value >= 0):
                raise InputError(f"{item.name} is {value!r}; allowed: seconds >= 0")
        margin = self.holder_margin
        if not isinstance(margin, (int, float)) or not 0 <= margin <= ANY_MARGIN:
            raise InputError(f"holder_margin is {margin!r}; allowed: a difference of scores, 0..{ANY_MARGIN:g}")
        score = self.detection_score
        if score is not None and not (isinstance(score, (int, float)) and 0 <= score <= 1):
            raise InputError(f"detection_score is {score!r}; allowed: 0..1, or None for the bundle's own")
