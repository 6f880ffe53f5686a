"""A video file that is written frame by frame, and appears under its name when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from types import MappingProxyType

import cv2

from runtime.common.closing import Closing
from runtime.errors import InputError, OutputError
from runtime.images.decode import Image
from runtime.streams.opencv import path_for_opencv

CODECS = MappingProxyType({".avi": "MJPG", ".mkv": "mp4v", ".mp4": "mp4v"})
"""Suffix to the codec that every OpenCV writes."""

FRAMES_PER_SECOND = 25.0
"""The rate of a written video if the source does not state one."""

_RESERVE_BYTES = 1 << 20
"""Room that must be left on the disk for the index, which is written last."""

_INDEX_BYTES = 32
"""An upper bound of a frame's part of the index."""

_LONGEST_GAP_S = 5.0
"""A longer pause of a camera is shown as one so long."""


class VideoOutput(Closing):
    """Writes a video under a name of its own and renames it at the end: what is there is always playable.

    It is finished when the context ends, also after an error or Ctrl-C, so that what was seen until then is kept. A
    video has one size: frames of another one are resized to that of the first.

    Args:
        path: The file, ``.mp4``, ``.avi`` or ``.mkv``; there must be none of that name.
        frames_per_second: The rate of the video.

    Raises:
        InputError: Another suffix.
        OutputError: The file is there already, its name is not UTF-8, or its folder cannot be written to.
    """

    def __init__(self, path: Path, frames_per_second: float = FRAMES_PER_SECOND) -> None:
        if path.suffix.lower() not in CODECS:
            raise InputError(f"{path} cannot be a video: videos are written as {', '.join(sorted(CODECS))}")
        if os.path.lexists(path):
            raise OutputError(f"{path} is there already; delete it or name another file")
        self.path = path
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        self._prepare()
        self._rate = frames_per_second
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._written = 0
        self._first_s: float | None = None
        self._last_s = 0.0

    def write(self, image: Image, *, time_s: float | None = None) -> None:
        """Add one frame, (H, W, 3) uint8 BGR.

        Args:
            image: The frame.
            time_s: Its time; frames are then repeated or left out, so that the video runs as the source did. None, and
                a time that stands still, add it once.

        Raises:
            OutputError: This OpenCV cannot write such a video, or the disk is full; what was written before is kept.
        """
        writer = self._opened(image)
        if image.shape[1::-1] != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA).astype(image.dtype, copy=False)
        for _ in range(1 if time_s is None else self._repeats(time_s)):
            self._check_space()
            writer.write(image)
            self._written += 1

    def close(self) -> None:
        """Finish the video and give it its name. Closing twice does no harm.

        Raises:
            OutputError: It could not be written as a whole, such as on a disk with a quota; what can be played of it is
                kept.
        """
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.release()
        declared, playable = self._check_file() if self._written else (0.0, False)
        if playable:
            try:
                os.replace(self._partial, self.path)
            except OSError as error:
                raise OutputError(f"{self.path} cannot be written: {error}") from error
        else:
            with contextlib.suppress(OSError):
                self._partial.unlink()
        if declared < self._written - 1:  # MKV has a duration in place of a count
            kept = "what can be played of it is kept" if playable else "nothing of it can be played, it was removed"
            raise OutputError(f"{self.path} could not be written as a whole; {kept}; is the disk full?")

    def _prepare(self) -> None:
        """Make the folder, and find out before the first frame whether the video can be written."""
        try:
            str(self._partial).encode()
        except UnicodeEncodeError:  # OpenCV ends the process on such a name
            raise OutputError(f"the name of {self.path} is not UTF-8, which OpenCV needs; name another file") from None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(self._partial):
                self._partial.touch()
                self._partial.unlink()
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error}") from error

    def _check_space(self) -> None:
        """Stop while the index still fits on the disk: OpenCV does not say that a frame could not be written."""
        try:
            free = shutil.disk_usage(self._partial.parent).free
        except OSError as error:  # the folder has gone
            raise OutputError(f"{self.path} cannot be written: {error}") from error
        needed = _RESERVE_BYTES + _INDEX_BYTES * self._written
        if free < needed:
            kept = "what was written until now is kept" if self._written else "nothing was written"
            raise OutputError(
                f"the disk of {self.path} is full: {free} bytes are free, and to finish a video takes {needed}; {kept}"
            )

    def _check_file(self) -> tuple[float, bool]:
        """The number of frames by the written file's own index, and whether the first one can be decoded."""
        capture = cv2.VideoCapture(path_for_opencv(self._partial))
        try:
            return capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.read()[0]
        finally:
            capture.release()

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
            self._check_space()
            self._size = (image.shape[1], image.shape[0])
            codec = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
            self._writer = cv2.VideoWriter(path_for_opencv(self._partial), codec, self._rate, self._size)
            if not self._writer.isOpened():
                raise OutputError(f"{self.path} cannot be written as a video by this OpenCV; name another suffix")
        return self._writer
