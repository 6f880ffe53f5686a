"""One frame of a stream."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.images.decode import Image


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded frame with its source and its time.

    Attributes:
        image: (H, W, 3) uint8 BGR, turned upright; the caller owns it.
        source: The source's position in the list of sources; 0 where there is one.
        index: The position among the decoded frames of the source, from 0. Dropped frames count, corrupt ones do not.
        time_s: Seconds since the start of a video file by its own clock; of a camera or an address since it was opened
            first; of images, 0.0.
        captured: ``time.monotonic()`` when it was decoded.
    """

    image: Image
    source: int
    index: int
    time_s: float
    captured: float
