"""What frames can come from: a camera, a video file, an address, a folder of images, any iterable."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote

import numpy as np

from runtime.common.addresses import check_address, is_address, looks_like_address, scheme_of, without_password
from runtime.errors import InputError, SourceError
from runtime.images.decode import SUFFIXES, UNREAD_SUFFIXES, ImageLike
from runtime.images.folders import image_files
from runtime.images.foreign import is_pil

Source: TypeAlias = int | str | os.PathLike[str] | Iterable[ImageLike]

MAX_CAMERAS = 100
"""Camera indices are below it; OpenCV takes larger ones for a choice of driver."""

MAX_SOURCES = 64
"""Sources of one stream."""

_ALLOWED = "allowed: a camera index, a path, an address or an iterable"
_DEVICE = re.compile(r"/dev/video([0-9]{1,3})")


@dataclass(frozen=True, eq=False)
class SourceSpec:
    """A source that was looked at but not opened.

    Attributes:
        kind: What it is.
        name: The name for messages and counts, without a password.
        target: The camera's index, the address, the video's path, the images' paths, or the iterable.
    """

    kind: Literal["camera", "address", "video", "images", "iterable"]
    name: str
    target: Any


def source_specs(source: Source | Sequence[Source]) -> tuple[list[SourceSpec], bool]:
    """The sources that are meant, and whether the value is a single one.

    A list or tuple is several sources if an element of it is one and no image: a camera index, an address, a folder,
    the path of a video, or an iterable. Any other list is a single source, whose elements are its images.

    Raises:
        InputError: Nothing that frames can come from.
        SourceError: There is no such file, folder or camera.
    """
    if isinstance(source, (list, tuple)) and any(map(_is_stream, source)):
        if len(source) > MAX_SOURCES:
            raise InputError(f"{len(source)} sources are given; allowed: at most {MAX_SOURCES} in one stream")
        return [source_spec(item) for item in source], False
    return [source_spec(source)], True


def _is_stream(item: Any) -> bool:
    """Whether an element of a list is a source of its own and no image."""
    if isinstance(item, int) and not isinstance(item, bool):
        return True
    if isinstance(item, (str, os.PathLike)):
        text = os.fspath(item)
        if looks_like_address(text) or _camera_index(text) is not None:
            return True
        suffix = Path(text).suffix.lower()
        return os.path.isdir(text) or (suffix != "" and suffix not in SUFFIXES | UNREAD_SUFFIXES)
    return isinstance(item, (list, tuple, Iterator))


def source_spec(source: Source) -> SourceSpec:
    """The one source that is meant; raises as :func:`source_specs` does."""
    if isinstance(source, bool):
        raise InputError(f"source is {source!r}; {_ALLOWED} of images")
    if isinstance(source, (int, np.integer)):
        return _camera(int(source))
    if isinstance(source, str) and is_address(source):
        return _address(source)
    if isinstance(source, (str, os.PathLike)):
        return _path(os.fspath(source), is_text=isinstance(source, str))
    if is_pil(source) or (isinstance(source, np.ndarray) and source.ndim == 3):
        raise InputError("source is one image; give it to predict(), or put it into a list")
    if isinstance(source, Iterable):
        return SourceSpec("iterable", type(source).__name__, source)
    raise InputError(f"source is a {type(source).__name__}; {_ALLOWED}")


def _camera(index: int) -> SourceSpec:
    if not 0 <= index < MAX_CAMERAS:
        raise SourceError(f"there is no camera {index}; allowed: an index from 0 to {MAX_CAMERAS - 1}")
    if sys.platform == "linux" and not os.path.exists(f"/dev/video{index}"):
        there = sorted(name for name in _devices() if _DEVICE.fullmatch(name))
        raise SourceError(
            f"camera {index} cannot be opened: check that it exists, is not in use, and that this user may read "
            f"/dev/video{index}; found here: {', '.join(there) or 'no camera'}"
        )
    return SourceSpec("camera", f"camera {index}", index)


def _devices() -> list[str]:
    try:
        return [f"/dev/{name}" for name in os.listdir("/dev")]
    except OSError:
        return []


def _camera_index(text: str) -> int | None:
    """The index in ``0`` or ``/dev/video0``; None for any other text, and where a file has that name."""
    if device := _DEVICE.fullmatch(text):
        return int(device[1])
    return int(text) if re.fullmatch(r"-?[0-9]{1,10}", text) and not os.path.lexists(text) else None


def _address(address: str) -> SourceSpec:
    check_address(address)
    if scheme_of(address) == "file":
        path = address.partition("://")[2].removeprefix("localhost")
        return _path(path if os.path.exists(path) else unquote(path), is_text=False)
    return SourceSpec("address", without_password(address), address)


def _path(text: str, *, is_text: bool) -> SourceSpec:
    if not text:  # as a Path it would be the working folder
        raise InputError(f"source is an empty text; {_ALLOWED}")
    index = _camera_index(text)
    if index is not None and (is_text or text.startswith("/dev/")):
        return _camera(index)
    path = Path(text)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    if is_folder:
        return SourceSpec("images", str(path), image_files(path))
    if not is_file:
        if looks_like_address(text):
            raise SourceError(
                f"{without_password(text)} is an address as a Path, which loses a slash: give it as text, as in "
                "stream('rtsp://camera/1')"
            )
        raise SourceError(f"there is no file {path}")
    if path.suffix.lower() in SUFFIXES | UNREAD_SUFFIXES:
        return SourceSpec("images", str(path), [path])
    return SourceSpec("video", str(path), path)
