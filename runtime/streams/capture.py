"""The protocol of what decodes a video file, a camera or an address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from runtime.images.decode import Image

GRACE = 2.0
"""FFmpeg's own limits are so many timeouts. The parent process ends a read in time: FFmpeg, interrupted, would first
hand out a frame that it kept back, and wait anew."""

NEEDS_RANGES = "; a recording with its index at the end can only be read from a server that sends ranges of bytes"
"""A hint for recordings at addresses that open and give no frame."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What one read gave: a frame, or the news that frames were corrupt.

    Attributes:
        image: (H, W, 3) uint8 BGR, upright; None where nothing could be decoded.
        time_s: The frame's time by the source's own clock; None where it has none.
        captured: ``time.monotonic()`` when it was decoded.
        corrupt: Frames that could not be decoded since the last reading.
    """

    image: Image | None
    time_s: float | None
    captured: float
    corrupt: int = 0


class Capture(Protocol):
    """An open source. One thread uses it."""

    live: bool
    """Whether the end of it is the loss of a camera; the end of a recording is only its end."""

    def read(self) -> Reading | None:
        """The next reading; None at the end.

        Raises:
            SourceError: It was lost, or a recording ended before its end.
        """
        ...

    def close(self) -> None:
        """Free what it holds; closing twice does no harm."""
        ...
