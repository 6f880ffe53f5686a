"""The times of a recording's frames: those that it states, or what its rate makes of them."""

from __future__ import annotations

_RATE = 25.0
"""Frames per second of a recording that states no rate; FFmpeg takes the same."""


class FrameTimes:
    """Times that rise from frame to frame.

    A stream without a container, such as raw H.264, states no times, or 0 for every frame. Such a frame's time follows
    from the last one that was stated and the frames since then.

    Args:
        rate: Frames per second that the recording states; None if it states none.
    """

    def __init__(self, rate: float | None) -> None:
        self._rate = rate or _RATE
        self._base, self._since, self._last = 0.0, 0, -1.0

    def next(self, stated: float | None, *, skipped: int = 0) -> float:
        """Seconds from the start of the recording to its next frame.

        Args:
            stated: Its own time; None where it has none.
            skipped: Frames before it that could not be decoded.
        """
        self._since += skipped + (self._last >= 0)
        if stated is not None and stated > self._last:
            self._base, self._since = stated, 0
        self._last = self._base + self._since / self._rate
        return self._last
