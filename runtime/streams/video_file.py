"""A video file: its frames, and whether it holds all that it names."""

from __future__ import annotations

import logging
import struct
import time
from pathlib import Path
from typing import BinaryIO

import cv2

from runtime.common.limits import too_many_pixels
from runtime.errors import SourceError
from runtime.images.decode import as_image
from runtime.streams.capture import Reading
from runtime.streams.frame_times import FrameTimes
from runtime.streams.opencv import time_s_of, video_capture

_log = logging.getLogger("edgevis.streams")

_MAX_FAILURES = 10_000
"""Failed reads in a row after which a file is taken to have ended, whatever its index says."""


class VideoFile:
    """A video file that OpenCV decodes.

    A frame that cannot be decoded is skipped and counted. So is, at the end, one that the file's index names and that
    did not come; the end is then logged as a warning. A file that was cut, so that it names bytes beyond its end,
    raises after its last frame.

    Raises:
        SourceError: It is empty, is no video, or uses a codec that this OpenCV lacks.
    """

    live = False

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            empty = path.stat().st_size == 0
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error}") from error
        if empty:
            raise SourceError(f"{path} is empty: it has no bytes, and is not a video")
        self._capture = video_capture(path)
        if not self._capture.isOpened():
            self._capture.release()
            cut = f": {problem}" if (problem := cut_short(path)) else ""
            raise SourceError(
                f"{path} cannot be opened{cut}; check that it is a whole video, and that OpenCV can decode it"
            )
        sides = (int(self._capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if problem := too_many_pixels(*sides):
            self._capture.release()
            raise SourceError(f"{path}: a frame {problem}")
        self._declared = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self._decoded = self._corrupt = 0
        self._times = FrameTimes(self.frames_per_second)

    @property
    def frames_per_second(self) -> float | None:
        """The rate that the file states; None if it states none between 1 and 1000."""
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        return rate if 1.0 <= rate <= 1000.0 else None

    def read(self) -> Reading | None:
        failures = 0
        while True:
            success, image = self._capture.read()
            if success:
                self._decoded += 1
                self._corrupt += failures
                time_s = self._times.next(time_s_of(self._capture), skipped=failures)
                return Reading(as_image(image), time_s, time.monotonic(), failures)
            if self._decoded + self._corrupt + failures >= self._declared or failures >= _MAX_FAILURES:
                return self._ended()
            failures += 1

    def _ended(self) -> Reading | None:
        missing = self._declared - self._decoded - self._corrupt
        if missing > 0:
            self._corrupt += missing
            return Reading(None, None, time.monotonic(), missing)
        counts = f"{self._decoded} of {self._declared} frames could be decoded"
        if self._decoded == 0:
            raise SourceError(f"{self._path} was opened but gave no frame: {self._reason()}")
        if problem := cut_short(self._path):
            raise SourceError(f"{self._path} ends early, {counts}: {problem}")
        if self._corrupt:
            _log.warning("%s is damaged: %s", self._path, counts)
        return None

    def _reason(self) -> str:
        code = int(self._capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
        codec = code.to_bytes(4, "little").decode("latin-1")
        if not self._declared:
            return "it holds none"
        return f"OpenCV {cv2.__version__} cannot decode its codec {codec!r}; convert it, for example to H.264"

    def close(self) -> None:
        self._capture.release()


def frames_per_second(path: Path) -> float | None:
    """The frame rate that a video file states; None if it states none between 1 and 1000.

    Raises:
        SourceError: It is no video that can be opened.
    """
    file = VideoFile(path)
    try:
        return file.frames_per_second
    finally:
        file.close()


def cut_short(path: Path) -> str | None:
    """What is missing of an MP4, MOV or AVI file that names bytes beyond its end; None for any other file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            end = _named_end(file, size)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    return None if end <= size else f"it is cut, {size} of at least {end} bytes are there"


def _named_end(file: BinaryIO, size: int) -> int:
    """The end of the last top-level box or RIFF chunk that begins inside the file."""
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return 8 + int(struct.unpack("<I", head[4:8])[0])
    if head[4:8] not in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return 0
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length = int(struct.unpack(">I", head[:4])[0])
        if length == 1 and len(head) == 16:
            length = int(struct.unpack(">Q", head[8:])[0])
        if length < 8:  # 0: to the end of the file
            return size
        start += length
    return start
