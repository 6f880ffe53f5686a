"""The series of a pipeline's counts, as both exporters name them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from runtime.tracking.stats import PipelineStats


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one series.

    Attributes:
        name: The series' name, with its unit, as Prometheus' conventions have it.
        kind: Whether it only grows.
        help: What it is.
        labels: Names and values, such as the source.
        value: The value.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[tuple[str, str], ...]
    value: float


def samples(stats: PipelineStats) -> Iterator[Sample]:
    """All values; those that are not known yet are left out. The values of one series come one after another."""
    for name, kind, text, field, scale in _BY_SOURCE:
        for position, source in enumerate(stats.sources):
            value = float(getattr(source, field)) * scale
            if not math.isnan(value):
                shown = source.source.encode(errors="backslashreplace").decode()  # a file's name need not be text
                yield Sample(name, kind, text, (("source", shown), ("position", str(position))), value)
    for name, kind, text, field, scale in _OF_ALL:
        yield Sample(name, kind, text, (), float(getattr(stats, field)) * scale)
    for stage, milliseconds in stats.stage_ms.items():
        text = "Mean time of a stage for one frame."
        yield Sample("edgevis_stage_seconds", "gauge", text, (("stage", stage),), milliseconds / 1e3)
    if stats.drift is not None:
        if stats.drift.shift is not None:
            text = "Squared distance of recent embeddings from the enrolment's over what chance explains."
            yield Sample("edgevis_embedding_drift", "gauge", text, (), stats.drift.shift)
        text = "Whether the drift is above its bound, 0 or 1."
        yield Sample("edgevis_embedding_drift_alarm", "gauge", text, (), float(stats.drift.alarm))


_Row = tuple[str, Literal["counter", "gauge"], str, str, float]

_BY_SOURCE: tuple[_Row, ...] = (
    ("edgevis_source_frames_total", "counter", "Frames that were handed out.", "frames", 1),
    ("edgevis_source_dropped_total", "counter", "Frames dropped because newer ones had come.", "dropped", 1),
    ("edgevis_source_corrupt_total", "counter", "Frames that could not be decoded.", "corrupt", 1),
    ("edgevis_source_reconnects_total", "counter", "Times a lost camera came back.", "reconnects", 1),
    ("edgevis_source_connected", "gauge", "Whether the source is being read, 0 or 1.", "connected", 1),
    ("edgevis_source_fps", "gauge", "Frames per second, recently.", "fps", 1),
    ("edgevis_source_latency_p50_seconds", "gauge", "Median latency of recent frames.", "latency_p50_ms", 1e-3),
    ("edgevis_source_latency_p99_seconds", "gauge", "99th percentile of it.", "latency_p99_ms", 1e-3),
)
_OF_ALL: tuple[_Row, ...] = (
    ("edgevis_frames_total", "counter", "Frames that went through the pipeline.", "frames", 1),
    ("edgevis_objects_total", "counter", "Tracked objects in them.", "objects", 1),
    ("edgevis_unknown_objects_total", "counter", "Those without a label.", "unknown_objects", 1),
    ("edgevis_tracks_total", "counter", "Tracks that were begun.", "tracks", 1),
    ("edgevis_embedded_total", "counter", "Crops that were embedded.", "embedded", 1),
    ("edgevis_unknowns", "gauge", "Unknown identities that are remembered.", "unknowns", 1),
    ("edgevis_unknown_ratio", "gauge", "The share of objects without a label.", "unknown_rate", 1),
)
