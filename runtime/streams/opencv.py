"""OpenCV's reader of video files, cameras and addresses."""

from __future__ import annotations

import os
import time
from pathlib import Path

import cv2

from runtime.common.addresses import ALWAYS_LIVE, hide, scheme_of
from runtime.common.extras import install_command
from runtime.common.files import open_regular
from runtime.errors import SourceError
from runtime.images.decode import as_image
from runtime.streams.capture import GRACE, Reading


def open_opencv(target: int | str, *, timeout_s: float) -> OpenCVCapture:
    """Open a camera's index or an address.

    Raises:
        SourceError: It cannot be opened within the time.
    """
    if isinstance(target, int):
        capture, name = cv2.VideoCapture(target), f"camera {target}"
        advice = "check that it exists, is not in use, and that OpenCV can decode it"
    else:
        limit = int(GRACE * timeout_s * 1e3)
        options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
        capture, name = cv2.VideoCapture(target, cv2.CAP_FFMPEG, options), hide(target, target)
        advice = (
            "check the address, the user name and the password, and that OpenCV can decode it; PyAV would say why: "
        )
        advice += install_command("video")
    if not capture.isOpened():
        capture.release()
        raise SourceError(f"{name} cannot be opened: {advice}")
    live = isinstance(target, int) or scheme_of(target) in ALWAYS_LIVE or capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0
    return OpenCVCapture(capture, live=live)


class OpenCVCapture:
    """A camera or an address that OpenCV reads. It cannot tell a corrupt frame from a sound one."""

    def __init__(self, capture: cv2.VideoCapture, *, live: bool) -> None:
        self._capture = capture
        self.live = live

    def read(self) -> Reading | None:
        success, image = self._capture.read()
        if not success:
            return None
        captured = time.monotonic()
        return Reading(as_image(image), None if self.live else time_s_of(self._capture), captured)

    def close(self) -> None:
        self._capture.release()


def time_s_of(capture: cv2.VideoCapture) -> float:
    """Seconds from the start of the recording to the frame that was read last."""
    return max(0.0, capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3)


def video_capture(path: Path) -> cv2.VideoCapture:
    """OpenCV's reader of a video file; ``isOpened()`` says whether it opened.

    Raises:
        SourceError: The name of the file is not UTF-8, and the system offers no other name for it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:  # OpenCV 4 and 5 end the process on such a name
        return _captured_by_number(path)
    return cv2.VideoCapture(path_for_opencv(path))


def path_for_opencv(path: Path) -> str:
    """A path as OpenCV takes it: FFmpeg would take what is before a colon for a protocol, as of ``rtsp:door.mp4``."""
    return os.path.join(os.curdir, path)


def _captured_by_number(path: Path) -> cv2.VideoCapture:
    """Open a video file by its descriptor's path, such as ``/proc/self/fd/3``."""
    try:
        with open_regular(path) as file:
            other = f"/proc/self/fd/{file.fileno()}"
            if not os.path.exists(other):
                raise SourceError(f"the name of {path} is not UTF-8, which OpenCV needs; rename the file")
            return cv2.VideoCapture(other)  # opens it once more
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
