"""The time of a source's frames, which always goes on."""

from __future__ import annotations

from runtime.streams.frame import Frame

IMAGES_PER_SECOND = 25.0
"""The rate of sources whose frames have no time: folders and iterables of images."""


class FrameClock:
    """Seconds of one source, by the time of its frames; by their index where they have none, or it stands still."""

    def __init__(self) -> None:
        self._time_s = 0.0
        self._index: int | None = None

    def advance(self, frame: Frame) -> float:
        """The time of the next frame in seconds."""
        if self._index is None or frame.time_s > self._time_s:
            self._time_s = frame.time_s
        else:
            self._time_s += max(frame.index - self._index, 1) / IMAGES_PER_SECOND
        self._index = frame.index
        return self._time_s
