"""Counts, rates and times of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.common.json_data import to_json, without_nan
from runtime.streams.stats import SourceStats
from runtime.tracking.drift import DriftState
from runtime.tracking.objects import TrackedObject

_STAGES = ("detect", "track", "identify")


@dataclass(frozen=True, slots=True)
class PipelineStats:
    """What a pipeline has done since it was opened.

    Attributes:
        sources: The sources of the last stream: frames, drops, reconnects, rates and latencies of each.
        frames: Frames that were processed.
        objects: Objects in them, a track once for each frame.
        unknown_objects: Those of them without a label.
        tracks: Tracks that were begun.
        embedded: Crops that were embedded.
        unknowns: Unknown identities that are remembered now.
        stage_ms: Milliseconds for one frame by stage, the mean: ``detect``, ``track``, ``identify``.
        drift: See :mod:`runtime.tracking.drift`; None where nothing is identified.
    """

    sources: tuple[SourceStats, ...]
    frames: int
    objects: int
    unknown_objects: int
    tracks: int
    embedded: int
    unknowns: int
    stage_ms: Mapping[str, float]
    drift: DriftState | None

    @property
    def unknown_rate(self) -> float:
        """The share of objects without a label, 0..1; 0.0 before the first."""
        return self.unknown_objects / self.objects if self.objects else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a latency that is not known yet is None."""
        return {**without_nan(to_json(self)), "unknown_rate": self.unknown_rate}


class PipelineCounters:
    """The counts behind :class:`PipelineStats`."""

    def __init__(self) -> None:
        self._frames = self._objects = self._unknown = self._tracks = 0
        self._ms = dict.fromkeys(_STAGES, 0.0)

    def add(self, results: Sequence[Sequence[TrackedObject]], stage_ms: Mapping[str, float]) -> None:
        """Count the objects of some frames, and the milliseconds that the stages took for all of them."""
        self._frames += len(results)
        self._objects += sum(map(len, results))
        self._unknown += sum(item.label is None for objects in results for item in objects)
        self._tracks = max([self._tracks, *(item.track for objects in results for item in objects)])
        for stage in _STAGES:
            self._ms[stage] += stage_ms[stage]

    def stats(
        self, sources: tuple[SourceStats, ...], *, unknowns: int, embedded: int, drift: DriftState | None
    ) -> PipelineStats:
        stage_ms = {stage: total / max(self._frames, 1) for stage, total in self._ms.items()}
        return PipelineStats(
            sources,
            self._frames,
            self._objects,
            self._unknown,
            self._tracks,
            embedded,
            unknowns,
            stage_ms,
            drift,
        )
