"""Counts, rates and latencies of the sources of a stream."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.common.json_data import to_json, without_nan

_RECENT = 1024
"""Frames that rates and percentiles are taken over: a bounded memory of a stream that never ends."""


@dataclass(frozen=True)
class SourceStats:
    """What one source of a stream has delivered so far.

    Attributes:
        source: The path, camera or address, without its password.
        frames: Frames that were handed out.
        dropped: Frames that were decoded and dropped because newer ones had come.
        corrupt: Frames that could not be decoded, or that a file's index names and the file does not hold.
        reconnects: How often a camera that was lost gave frames again.
        fps: Frames handed out a second, over the last 1,024; 0.0 before the second one.
        latency_p50_ms: Median of the time from the decoding of a frame until the program asked for the next one, which
            is when its results had been used; over the last 1,024 frames, NaN before the first.
        latency_p99_ms: The 99th percentile of it.
        connected: Whether the source is being read now.
    """

    source: str
    frames: int
    dropped: int
    corrupt: int
    reconnects: int
    fps: float
    latency_p50_ms: float
    latency_p99_ms: float
    connected: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a latency that is not known yet is None."""
        return dict(without_nan(to_json(self)))


class SourceCounters:
    """The counts behind :class:`SourceStats`. The stream's lock is held by whoever changes them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.frames = self.dropped = self.corrupt = self.reconnects = 0
        self.connected = False
        self._times: deque[float] = deque(maxlen=_RECENT)
        self._latencies: deque[float] = deque(maxlen=_RECENT)

    def handed_out(self) -> None:
        self.frames += 1
        self._times.append(time.monotonic())

    def used(self, captured: float) -> None:
        """Note that the frame captured at ``captured`` has been used."""
        self._latencies.append(time.monotonic() - captured)

    def stats(self) -> SourceStats:
        times, latencies = list(self._times), np.array(self._latencies, np.float64) * 1e3
        elapsed = times[-1] - times[0] if len(times) > 1 else 0.0
        p50, p99 = np.percentile(latencies, (50, 99)) if latencies.size else (np.nan, np.nan)
        return SourceStats(
            self.source,
            self.frames,
            self.dropped,
            self.corrupt,
            self.reconnects,
            (len(times) - 1) / elapsed if elapsed > 0 else 0.0,
            float(p50),
            float(p99),
            self.connected,
        )
