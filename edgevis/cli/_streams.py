"""Predicts the frames of a video, a camera or an address one by one, and draws the results."""

from __future__ import annotations

import argparse
import os
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Protocol

from edgevis import InputError, OutputError, Predictor, SourceError
from edgevis.cli._formats import format_writer
from edgevis.cli._results import results_for
from edgevis.cli._text import HEADERS, drawn, result_widths
from runtime.common.addresses import without_password
from runtime.images.decode import SUFFIXES, Image
from runtime.images.picture_files import write_drawing
from runtime.streams.video_file import frames_per_second
from runtime.streams.video_output import CODECS, FRAMES_PER_SECOND, VideoOutput

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".264", ".265", ".3gp", ".asf", ".avi", ".dav", ".divx", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf", ".m2ts",
    ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm",
    ".wmv", ".y4m",
))
# fmt: on

Stream = int | str | Path


def add_stream_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a camera or an address."""
    parser.add_argument(
        "--drop",
        choices=("auto", "none", "oldest"),
        default="auto",
        help="of a camera: which frames a slow model leaves out; auto (the default) drops the oldest of a live source",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=10.0,
        help="of a camera: it counts as lost after so long without a frame (default: 10)",
    )
    parser.add_argument("--no-reconnect", action="store_true", help="of a camera: end when it is lost")


def stream_of(names: list[str]) -> Stream | None:
    """The camera's index, the address or the video file that a verb is given; None where it is given images.

    Raises:
        InputError: Something else is named beside it.
    """
    streams = [stream for name in names if (stream := _stream(name)) is not None]
    if streams and len(names) > 1:
        shown = without_password(str(streams[0]))
        raise InputError(f"{shown} is a camera, an address or a video: name nothing else beside it")
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
    widths = (7, *result_widths(predictor), -7)
    head = {"source": without_password(str(stream)), "threshold": predictor.threshold}
    output = _Nothing() if arguments.plot is None else _output(Path(arguments.plot), stream)
    predicted = predictor.stream(
        stream,
        top_k=arguments.top_k,
        drop=arguments.drop,
        timeout_s=arguments.timeout,
        reconnect=not arguments.no_reconnect,
    )
    writer = format_writer(arguments, predictor.labels) or results_for(
        arguments, head, ("frame", *HEADERS[1:]), lambda: widths, endless=True
    )
    with output, predicted, writer as results:
        for number, (frame, result) in enumerate(islice(predicted, arguments.frames)):
            entry = {"frame": number, **result.to_dict()}
            try:
                if arguments.plot is not None:
                    entry["plot"] = output.write(number, drawn(result, frame, pictures))
            finally:  # print the result even if the disk is full
                results.add(
                    entry, (str(number), *result.cells(), f"{sum(result.speed_ms.values()):.1f}"), frame.shape[:2]
                )


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
    """A video file."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self._video = VideoOutput(path, frames_per_second)

    def write(self, number: int, picture: Image) -> str:
        self._video.write(picture)
        return str(self._video.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._video.close()


def _output(path: Path, stream: Stream) -> _Output:
    suffix = path.suffix.lower()
    if suffix in CODECS:
        return _Video(path, frame_rate_of(stream))
    if suffix in VIDEO_SUFFIXES:
        raise InputError(f"--output {path}: videos are written as {', '.join(sorted(CODECS))}; or name a folder")
    check_folder_name(path)
    return _Pictures(path)


def check_folder_name(folder: Path) -> None:
    """Refuse the name of a picture or video for a folder that is not there yet: it was meant to be a file.

    Raises:
        OutputError: It is one.
    """
    if folder.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES and not os.path.lexists(folder):
        raise OutputError(f"pictures are written into a folder, and {folder} is the name of a file; name a folder")


def frame_rate_of(stream: Stream) -> float:
    """The frame rate stored in a video file; cameras are not opened a second time to query it."""
    rate = None
    if isinstance(stream, Path):
        with suppress(SourceError):  # the stream says what is wrong with it
            rate = frames_per_second(stream)
    return rate or FRAMES_PER_SECOND
