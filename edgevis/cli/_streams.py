"""Predicts the frames of a video, a camera or an address one by one, and draws the results."""

from __future__ import annotations

import argparse
import os
import re
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Protocol

import cv2

from edgevis import InputError, OutputError, Predictor
from edgevis.cli._results import results_for
from edgevis.cli._text import HEADERS, drawn, label_width
from runtime.images.decode import Image
from runtime.images.picture_files import write_drawing
from runtime.streams.opencv import video_capture

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
)
_CODECS = {".avi": "MJPG", ".mkv": "mp4v", ".mp4": "mp4v"}
_FRAMES_PER_SECOND = 25.0
"""Frame rate of a written video if the source does not state one."""

Stream = int | str | Path


def stream_of(names: list[str]) -> Stream | None:
    """The camera's index, the address or the video file that a verb is given; None where it is given images.

    Raises:
        InputError: Something else is named beside it.
    """
    streams = [stream for name in names if (stream := _stream(name)) is not None]
    if streams and len(names) > 1:
        raise InputError(f"{streams[0]} is a camera, an address or a video: name nothing else beside it")
    return streams[0] if streams else None


def _stream(name: str) -> Stream | None:
    if "://" in name:
        return name
    if device := re.fullmatch(r"/dev/video([0-9]+)", name):
        return int(device[1])
    if re.fullmatch(r"[0-9]{1,3}", name) and not os.path.exists(name):
        return int(name)
    path = Path(name)
    return path if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() else None


def predict_stream(
    predictor: Predictor, stream: Stream, arguments: argparse.Namespace, pictures: dict[str, Image] | None
) -> None:
    """Print and draw the result of each frame until the stream or ``--frames`` ends.

    Raises:
        SourceError: The stream cannot be opened.
        OutputError: What is drawn cannot be written.
    """
    widths = (7, label_width(predictor), -6, -7)
    head = {"source": str(stream), "threshold": predictor.threshold}
    output = _Nothing() if arguments.plot is None else _output(Path(arguments.plot), stream)
    frames = islice(predictor.stream(stream, top_k=arguments.top_k), arguments.frames)
    with output, results_for(arguments, head, ("frame", *HEADERS[1:]), lambda: widths, endless=True) as results:
        for number, (frame, result) in enumerate(frames):
            entry = {"frame": number, **result.to_dict()}
            try:
                if arguments.plot is not None:
                    entry["plot"] = output.write(number, drawn(result, frame, pictures))
            finally:  # print the result even if the disk is full
                results.add(entry, (str(number), *result.cells(), f"{sum(result.speed_ms.values()):.1f}"))


def check_stream_arguments(arguments: argparse.Namespace) -> None:
    """Raise InputError for arguments that apply to images only."""
    if arguments.masks is not None:
        raise InputError("--masks is for images; of a video or camera, --output draws the masks")


class _Output(Protocol):
    def __enter__(self) -> _Output: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def write(self, number: int, picture: Image) -> str:
        """Write the picture of a frame; returns the path of its file."""
        ...


class _Nothing:
    def __enter__(self) -> _Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def write(self, number: int, picture: Image) -> str:
        return ""


class _Pictures(_Nothing):
    """A folder with a numbered JPEG for each frame; it replaces the pictures of an earlier run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, number: int, picture: Image) -> str:
        path = self._folder / f"frame-{number:06d}.jpg"
        write_drawing(path, picture)
        return str(path)


class _Video(_Nothing):
    """A video file; it is finalised when the context ends, also after an error."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        if os.path.lexists(path):
            raise OutputError(f"{path} is there already; delete it or name another file")
        self._path, self._frames_per_second = path, frames_per_second
        self._writer: cv2.VideoWriter | None = None

    def write(self, number: int, picture: Image) -> str:
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            height, width = picture.shape[:2]
            codec = cv2.VideoWriter.fourcc(*_CODECS[self._path.suffix.lower()])
            self._writer = cv2.VideoWriter(str(self._path), codec, self._frames_per_second, (width, height))
            self._size = width, height
        if not self._writer.isOpened():
            raise OutputError(f"{self._path} cannot be written as a video by this OpenCV; name a folder for pictures")
        # A strip of pictures may change the height; a video has one size.
        same = picture.shape[1::-1] == self._size
        self._writer.write(picture if same else cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA))
        return str(self._path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()


def _output(path: Path, stream: Stream) -> _Output:
    suffix = path.suffix.lower()
    if suffix in _CODECS:
        return _Video(path, _frames_per_second(stream))
    if suffix in VIDEO_SUFFIXES:
        raise InputError(f"--output {path}: videos are written as {', '.join(sorted(_CODECS))}; or name a folder")
    return _Pictures(path)


def _frames_per_second(stream: Stream) -> float:
    """The frame rate stored in a video file; cameras are not opened a second time to query it."""
    if not isinstance(stream, Path):
        return _FRAMES_PER_SECOND
    capture = video_capture(stream)
    try:
        rate = float(capture.get(cv2.CAP_PROP_FPS)) if capture.isOpened() else 0.0
    finally:
        capture.release()
    return rate if 1.0 <= rate <= 1000.0 else _FRAMES_PER_SECOND
