"""A video file that is written frame by frame, and appears under its name when it is whole."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import MappingProxyType, TracebackType

import cv2

from runtime.errors import InputError, OutputError
from runtime.images.decode import Image

CODECS = MappingProxyType({".avi": "MJPG", ".mkv": "mp4v", ".mp4": "mp4v"})
"""Suffix to the codec that every OpenCV writes."""

FRAMES_PER_SECOND = 25.0
"""The rate of a written video if the source does not state one."""

_LONGEST_GAP_S = 5.0
"""A longer pause of a camera is shown as one so long."""


class VideoOutput:
    """Writes a video under a name of its own and renames it at the end: what is there is always playable.

    It is finished when the context ends, also after an error or Ctrl-C, so that what was seen until then is kept. A
    video has one size: frames of another one are resized to that of the first.

    Args:
        path: The file, ``.mp4``, ``.avi`` or ``.mkv``; there must be none of that name.
        frames_per_second: The rate of the video.

    Raises:
        InputError: Another suffix.
        OutputError: The file is there already.
    """

    def __init__(self, path: Path, frames_per_second: float = FRAMES_PER_SECOND) -> None:
        if path.suffix.lower() not in CODECS:
            raise InputError(f"{path} cannot be a video: videos are written as {', '.join(sorted(CODECS))}")
        if os.path.lexists(path):
            raise OutputError(f"{path} is there already; delete it or name another file")
        self.path = path
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._rate = frames_per_second
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._written = 0
        self._first_s: float | None = None
        self._last_s = 0.0

    def __enter__(self) -> VideoOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, image: Image, *, time_s: float | None = None) -> None:
        """Add one frame, (H, W, 3) uint8 BGR.

        Args:
            image: The frame.
            time_s: Its time; frames are then repeated or left out, so that the video runs as the source did. None, and
                a time that stands still, add it once.

        Raises:
            OutputError: This OpenCV cannot write such a video, or the folder cannot be made.
        """
        writer = self._opened(image)
        if image.shape[1::-1] != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA).astype(image.dtype, copy=False)
        for _ in range(1 if time_s is None else self._repeats(time_s)):
            writer.write(image)
            self._written += 1

    def close(self) -> None:
        """Finish the video and give it its name. Closing twice does no harm."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.release()
        if self._written:
            os.replace(self._partial, self.path)
        else:
            with contextlib.suppress(OSError):
                self._partial.unlink()

    def _repeats(self, time_s: float) -> int:
        if self._first_s is None or time_s == self._last_s:
            self._first_s, self._last_s = time_s, time_s
            return 1
        self._last_s = time_s
        due = round((time_s - self._first_s) * self._rate) + 1
        longest = round(_LONGEST_GAP_S * self._rate)
        if due - self._written > longest:  # a camera that was away
            self._first_s += (due - self._written - longest) / self._rate
            due = self._written + longest
        return max(due - self._written, 0)

    def _opened(self, image: Image) -> cv2.VideoWriter:
        if self._writer is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{self.path} cannot be written: {error}") from error
            self._size = (image.shape[1], image.shape[0])
            codec = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
            self._writer = cv2.VideoWriter(str(self._partial), codec, self._rate, self._size)
            if not self._writer.isOpened():
                raise OutputError(f"{self.path} cannot be written as a video: no such folder, or not by this OpenCV")
        return self._writer
