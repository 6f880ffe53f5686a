"""Frames of a source: a camera, a video file, a network stream, a folder of images, any iterable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar

import cv2
import numpy as np

from runtime.common.files import open_regular
from runtime.errors import EdgevisError, InputError, SourceError
from runtime.images.decode import SUFFIXES, UNREAD_SUFFIXES, Image, ImageLike, as_image, read_image
from runtime.images.folders import image_files
from runtime.images.foreign import is_pil

T = TypeVar("T")

Source: TypeAlias = int | str | os.PathLike[str] | Iterable[ImageLike]


def frames(source: Source, *, on_error: Callable[[EdgevisError], object] | None = None) -> Iterator[Image]:
    """The frames of a source, one after another, as (H, W, 3) uint8 BGR arrays.

    Args:
        source: A camera's index, the path of a video, an image or a folder of images (those in its folders, too, in
            order of their paths; see :mod:`runtime.images.folders`), an address such as ``rtsp://…``, or an iterable of
            images.
        on_error: Called with the error of an image of a folder or an iterable that cannot be read; the next one
            follows. None raises it.

    Raises:
        InputError: Nothing that frames can come from.
        SourceError: It cannot be opened, or an image of it cannot be read.
    """
    if isinstance(source, bool):
        raise InputError(f"source is {source!r}; allowed: a camera index, a path, an address or an iterable of images")
    if isinstance(source, int):
        return _captured(source, f"camera {source}")
    if isinstance(source, str) and "://" in source:
        return _captured(source, source)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(source), on_error)
    if is_pil(source) or (isinstance(source, np.ndarray) and source.ndim == 3):
        raise InputError("source is one image; give it to predict(), or put it into a list")
    if isinstance(source, Iterable):
        return _each(enumerate(source), lambda item: as_image(item[1], f"frame {item[0]}"), on_error)
    raise InputError(f"source is a {type(source).__name__}; allowed: a camera index, a path, an address or an iterable")


def _each(
    items: Iterable[T], read: Callable[[T], Image], on_error: Callable[[EdgevisError], object] | None
) -> Iterator[Image]:
    for item in items:
        try:
            image = read(item)
        except (InputError, SourceError) as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        yield image


def _from_path(path: Path, on_error: Callable[[EdgevisError], object] | None) -> Iterator[Image]:
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    if is_folder:
        return _each(image_files(path), read_image, on_error)
    if not is_file:
        raise SourceError(f"there is no file {path}")
    if path.suffix.lower() in SUFFIXES | UNREAD_SUFFIXES:
        return iter([read_image(path)])
    return _captured(path, str(path))


def video_capture(source: int | str | Path) -> cv2.VideoCapture:
    """OpenCV's reader of a camera, an address or a video file; ``isOpened()`` says whether it opened.

    Raises:
        SourceError: The name of a file is not UTF-8, and the system offers no other name for it.
        InputError: An address is not UTF-8.
    """
    if isinstance(source, int):
        return cv2.VideoCapture(source)
    try:
        str(source).encode()
    except UnicodeEncodeError:  # OpenCV 4 and 5 end the process on such a name
        if not isinstance(source, Path):
            raise InputError(f"the address {source!r} is not UTF-8; allowed: text such as rtsp://camera/1") from None
        return _captured_by_number(source)
    return cv2.VideoCapture(str(source))


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


def _captured(source: int | str | Path, name: str) -> Iterator[Image]:
    capture = video_capture(source)
    if not capture.isOpened():
        capture.release()
        raise SourceError(
            f"{name} cannot be opened: check that it exists, is not in use, and that OpenCV can decode it"
        )
    return _drain(capture, name)


def _drain(capture: cv2.VideoCapture, name: str) -> Iterator[Image]:
    try:
        count = 0
        while True:
            success, frame = capture.read()
            if not success:
                break
            count += 1
            yield as_image(frame)
        if count == 0:
            raise SourceError(f"{name} was opened but gave no frame")
    finally:
        capture.release()
