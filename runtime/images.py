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

Mask: TypeAlias = npt.NDArray[np.bool_]
"""(H, W) bool, True on the object."""

MaskLike: TypeAlias = Any
"""A :data:`Mask`, (H, W) integers of which one value besides 0 is the object, the path of such an image, or a
``PIL.Image.Image``."""

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
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


def as_masks(value: MaskLike | Sequence[MaskLike], images: Sequence[Image]) -> list[Mask]:
    """One mask for each image.

    Args:
        value: One mask, or a list, a tuple or an (N, H, W) array of them.
        images: What they belong to.

    Raises:
        InputError: Another number of masks than of images, a mask of another size than its image or with more than one
            value besides 0, or one that marks nothing; the message names its position.
        SourceError: A path that cannot be read.
    """
    several = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 3)
    values = list(value) if several else [value]
    if len(values) != len(images):
        raise InputError(f"{len(values)} masks for {len(images)} images; give one mask for each image")
    names = [f"mask {index} of {len(values)}" if several else "mask" for index in range(len(values))]
    return [_as_mask(item, image, name) for item, image, name in zip(values, images, names, strict=True)]


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read an image file, turned upright by its EXIF orientation; greyscale becomes BGR, an alpha channel is dropped.

    Raises:
        SourceError: There is no such file, it is too large, or OpenCV cannot decode it.
    """
    return decode_image(_read_bytes(path), str(path))


def decode_image(data: bytes, name: str) -> Image:
    """Decode the bytes of an image file; ``name`` is for messages.

    Raises:
        SourceError: OpenCV cannot decode it.
    """
    return _decode(data, name, cv2.IMREAD_COLOR).astype(np.uint8, copy=False)


def decode_labels(data: bytes, name: str) -> npt.NDArray[Any]:
    """Decode an image whose values are labels, not light: (H, W) integers as the file has them.

    Raises:
        SourceError: OpenCV cannot decode it, or it has colours.
    """
    labels = _decode(data, name, cv2.IMREAD_UNCHANGED)
    if labels.ndim != 2:
        raise SourceError(f"{name} has shape {labels.shape}; a mask has one channel: save it as a grey PNG")
    return labels


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
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


def _decode(data: bytes, name: str, flags: int) -> npt.NDArray[Any]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise SourceError(f"{name} cannot be decoded: {error}") from error
    if image is None:
        raise SourceError(f"{name} is not an image that OpenCV can decode, or it is damaged")
    return image


def _as_mask(value: MaskLike, image: Image, name: str) -> Mask:
    if isinstance(value, (str, os.PathLike)):
        value = decode_labels(_read_bytes(value), str(value))
    pil = sys.modules.get("PIL.Image")
    if pil is not None and isinstance(value, pil.Image):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name} is a {type(value).__name__}; allowed: an (H, W) bool or integer array, a path, PIL")
    if value.ndim != 2 or value.dtype.kind not in "bui":
        raise InputError(
            f"{name} has shape {value.shape} and dtype {value.dtype}; allowed: (H, W), bool or integers: "
            "probability > 0.5 makes one of a float map"
        )
    if value.shape != image.shape[:2]:
        raise InputError(f"{name} is {value.shape}, its image {image.shape[:2]}; give a mask of the image's size")
    found = np.unique(value)
    marks = found[found != 0]
    if len(marks) == 0:
        raise InputError(f"{name} marks nothing: all of it is 0; set the object's pixels")
    if len(marks) > 1:
        shown = ", ".join(map(str, found[:6].tolist()))
        more = " …" if len(found) > 6 else ""
        raise InputError(f"{name} has the values {shown}{more}; say which is the object, as by mask == {marks[0]}")
    mask: Mask = value != 0
    return mask


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
