"""What counts as an image: an OpenCV array, a path or a PIL image. Everything becomes an OpenCV array here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from runtime.errors import InputError, SourceError

Image: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 BGR, as OpenCV reads it."""

ImageLike: TypeAlias = Any
"""An :data:`Image`, the path of an image file, or a ``PIL.Image.Image``."""

# fmt: off
_ALWAYS = (
    ".bmp", ".dib", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
)
# Which of these OpenCV reads depends on its release and build: GIF since 4.11, AVIF in some wheels, JPEG XL in none.
_BY_BUILD = (".avif", ".gif", ".jp2", ".jxl")
_NEVER = (
    ".arw", ".avifs", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".heic", ".heif", ".hif", ".ico", ".j2k", ".jpx", ".nef",
    ".orf", ".pfm", ".psd", ".raf", ".rw2", ".svg", ".tga",
)
# fmt: on
SUFFIXES = frozenset(_ALWAYS) | {suffix for suffix in _BY_BUILD if cv2.haveImageWriter(suffix)}
"""The suffixes, in lower case, of the files in a folder that are read as images."""
UNREAD_SUFFIXES = frozenset(_BY_BUILD + _NEVER) - SUFFIXES
"""Those of pictures that OpenCV does not read here; a listing names such files in a warning."""

MAX_FILE_BYTES = 256 << 20


def as_image(value: ImageLike, name: str = "image") -> Image:
    """One image as an (H, W, 3) uint8 BGR array; an array that already is one is returned as it is.

    Raises:
        InputError: Not an image, or of another dtype or shape.
        SourceError: A path that cannot be read.
    """
    if isinstance(value, np.ndarray):
        return _check_array(value, name)
    if isinstance(value, (str, os.PathLike)):
        return read_image(value)
    if value is None:
        raise InputError(f"{name} is None: the camera or file gave no frame; check what read() or imread() returned")
    # PIL is not a dependency: an object can only be a PIL image when the caller has imported PIL.
    pil = sys.modules.get("PIL.Image")
    if pil is not None and isinstance(value, pil.Image):
        try:
            rgb = np.asarray(value.convert("RGB"))
        except (OSError, SyntaxError) as error:  # PIL reads a file's pixels only now
            raise SourceError(f"{name} cannot be decoded by PIL: {error}") from error
        return np.ascontiguousarray(_check_array(rgb, name)[..., ::-1])
    raise InputError(
        f"{name} is a {type(value).__name__}; allowed: an (H, W, 3) uint8 BGR array, a path, or a PIL image"
    )


def as_images(value: ImageLike | Sequence[ImageLike]) -> tuple[list[Image], bool]:
    """One image or several, as a list, and whether it was one.

    A list, a tuple or an (N, H, W, 3) array is several.

    Raises:
        InputError: An empty list, or an element that is not an image; the message names its position.
        SourceError: A path that cannot be read.
    """
    several = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 4)
    if not several:
        return [as_image(value)], True
    if len(value) == 0:
        raise InputError("the list of images is empty; give at least one image")
    return [as_image(item, f"image {index} of {len(value)}") for index, item in enumerate(value)], False


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read an image file, turned upright by its EXIF orientation; greyscale becomes BGR, an alpha channel is dropped.

    Raises:
        SourceError: There is no such file, it is too large, or OpenCV cannot decode it.
    """
    return decode_image(read_image_file(path), str(path))


def decode_image(data: bytes, name: str) -> Image:
    """Decode the bytes of an image file; ``name`` is for messages.

    Raises:
        SourceError: OpenCV cannot decode it.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:
        raise SourceError(f"{name} cannot be decoded: {error}") from error
    if image is None:
        raise SourceError(f"{name} is not an image that OpenCV can decode, or it is damaged")
    return image.astype(np.uint8, copy=False)


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file.

    Raises:
        SourceError: There is no such file, it is too large, or it cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise SourceError(f"there is no image file {path}")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise SourceError(f"{path} has {size} bytes; image files of at most {MAX_FILE_BYTES} are read")
        return path.read_bytes()
    except SourceError:  # is an OSError, too
        raise
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def _check_array(array: npt.NDArray[Any], name: str) -> Image:
    shown = f"{name} has shape {array.shape} and dtype {array.dtype}"
    allowed = "allowed: (H, W, 3) uint8 BGR"
    if array.dtype != np.uint8:
        raise InputError(f"{shown}; {allowed}; a float image in 0..1 becomes one by (image * 255).astype('uint8')")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        raise InputError(f"{shown}; {allowed}; a grey image becomes one by cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)")
    if array.ndim == 3 and array.shape[2] == 4:
        raise InputError(f"{shown}; {allowed}; drop the alpha channel by cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)")
    if array.ndim != 3 or array.shape[2] != 3:
        raise InputError(f"{shown}; {allowed}")
    if 0 in array.shape:
        raise InputError(f"{shown}: it has no pixels; check the crop's corners")
    return array
