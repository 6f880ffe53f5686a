"""PyAV's reader of addresses, of the extra ``[video]``."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np

from runtime.common.addresses import ALWAYS_LIVE, hide, scheme_of
from runtime.common.limits import max_pixels
from runtime.errors import SourceError
from runtime.images.decode import Image
from runtime.streams.capture import GRACE, NEEDS_RANGES, Reading
from runtime.streams.frame_times import FrameTimes

OPTIONS_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
"""OpenCV reads it, too."""

_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}


def open_pyav(address: str, *, timeout_s: float) -> PyAVCapture:
    """Open an address; RTSP over TCP, where no packet is lost, and over UDP if the camera refuses that.

    Raises:
        SourceError: It cannot be opened within the time, or holds no video that can be decoded.
    """
    import av

    name = hide(address, address)
    options = {"rtsp_flags": "prefer_tcp"} if scheme_of(address).startswith("rtsp") else {}
    options |= capture_options(os.environ.get(OPTIONS_VARIABLE, ""))
    try:
        container = av.open(address, options=options, timeout=GRACE * timeout_s)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise SourceError(f"{name} cannot be opened: {_reason(error, address)}") from error
    try:
        return PyAVCapture(container, name, live=_is_live(container, address))
    except BaseException:
        container.close()
        raise


def capture_options(text: str) -> dict[str, str]:
    """FFmpeg's options as OpenCV's variable writes them: ``rtsp_transport;udp|buffer_size;1000000``.

    Raises:
        SourceError: It is malformed.
    """
    pairs = [part.split(";") for part in text.split("|") if part.strip()]
    if any(len(pair) != 2 for pair in pairs):
        # Without its text, which may hold a login.
        raise SourceError(f"{OPTIONS_VARIABLE} is malformed; allowed: pairs such as rtsp_transport;udp, with | between")
    return {name.strip(): value.strip() for name, value in pairs}


def _is_live(container: Any, address: str) -> bool:
    """Whether its end is a loss: a recording has a duration or a size."""
    return scheme_of(address) in ALWAYS_LIVE or not (container.duration or container.size > 0)


def _reason(error: BaseException, address: str = "") -> str:
    import av

    if isinstance(error, av.error.HTTPUnauthorizedError):
        return "the user name or the password is wrong, or none was given (401)"
    if isinstance(error, av.error.HTTPForbiddenError):
        return "this user may not see it (403)"
    if isinstance(error, av.error.HTTPNotFoundError):
        return "there is no stream of that name (404)"
    if isinstance(error, (av.error.ExitError, av.error.TimeoutError)):
        return "it did not answer in time"
    if isinstance(error, av.error.InvalidDataError):
        return "what it sends is no video that FFmpeg can read"
    if getattr(error, "errno", None) == errno.EIO and (problem := _unknown_host(address)):
        return problem
    return str(getattr(error, "strerror", None) or error)


def _unknown_host(address: str) -> str | None:
    """What is wrong with the name of an address's host, for which FFmpeg has only EIO; None if it is known."""
    try:
        host = urlsplit(address).hostname
        if host:
            socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        return f"the host {host} is not known: {error.strerror}"
    except ValueError:  # no address that could be taken apart, or no name
        return None
    return None


class PyAVCapture:
    """An open container of PyAV, of which the first video stream is decoded.

    Packets that cannot be decoded or came incomplete, and frames that the decoder flags as damaged, are counted and
    skipped.

    Raises:
        SourceError: There is no video, or no decoder for it.
    """

    def __init__(self, container: Any, name: str, *, live: bool) -> None:
        self._container, self._name, self.live = container, name, live
        if not container.streams.video:
            raise SourceError(f"{name} holds no video that can be decoded")
        self._stream = container.streams.video[0]
        if self._stream.codec_context is None:
            raise SourceError(f"{name} uses a codec that this FFmpeg cannot decode")
        self._stream.codec_context.options = {
            "err_detect": "explode",  # else half a JPEG is a picture with a grey half
            "max_pixels": str(max_pixels()),  # a larger frame counts as corrupt before memory is taken for it
        }
        self._frames: deque[Any] = deque()
        self._begun = False
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._times, self._skipped = FrameTimes(float(rate) if rate else None), 0
        self._packets: Iterator[Any] = container.demux(self._stream)

    def read(self) -> Reading | None:
        import av

        corrupt = 0
        while True:
            while self._frames:
                frame = self._frames.popleft()
                if frame.is_corrupt:
                    corrupt += 1
                    continue
                self._begun = True
                return Reading(_bgr(frame), self._time_s(frame, corrupt), time.monotonic(), corrupt)
            if corrupt:  # at once: the next frame may be long in coming
                self._skipped += corrupt
                return Reading(None, None, time.monotonic(), corrupt)
            try:
                packet = next(self._packets, None)
            except av.error.EOFError:
                packet = None
            except (av.error.FFmpegError, OSError) as error:
                hint = "" if self.live or self._begun else NEEDS_RANGES
                raise SourceError(f"{self._name} was lost: {_reason(error)}{hint}") from error
            if packet is None:
                return None
            if packet.is_corrupt:
                corrupt += 1
                continue
            try:
                self._frames.extend(packet.decode())
            except av.error.EOFError:
                return None
            except av.error.FFmpegError:
                corrupt += 1

    def _time_s(self, frame: Any, corrupt: int) -> float | None:
        """The frame's time after so many corrupt ones; None of a camera."""
        if self.live:
            return None
        skipped, self._skipped = self._skipped + corrupt, 0
        return self._times.next(None if frame.time is None else float(frame.time), skipped=skipped)

    def close(self) -> None:
        self._frames.clear()
        self._container.close()


def _bgr(frame: Any) -> Image:
    """(H, W, 3) uint8 BGR of a decoded frame, turned as its metadata say."""
    image = np.ascontiguousarray(frame.to_ndarray(format="bgr24"))
    turn = _TURNS.get(int(frame.rotation) % 360)
    return image if turn is None else np.asarray(cv2.rotate(image, turn), np.uint8)
