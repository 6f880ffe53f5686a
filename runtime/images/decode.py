"""Accepted images: an OpenCV array, a path or the bytes of an image file, a PIL image.

Everything becomes an OpenCV array here, and every entrance – prediction, enrolment, streams, calibration, training,
Triton – comes through :func:`as_image` or :func:`decode_image`, so that one picture has the same pixels whichever way
it comes:

* **Orientation.** Turned upright as its EXIF, XMP or AVIF orientation says, all eight of them.
* **16 bits.** Full range: 0..65535 becomes 0..255 (a file that states its greatest value, such as a 10-bit AVIF, is
  scaled by that). Nothing in a file tells 10, 12 or 14 bits stored in 16 from a dark picture: where no pixel exceeds a
  quarter of the range, the picture is refused.
* **Numbers without a range.** Floating point and 32-bit integers are refused.
* **Transparency.** Composited onto white, :data:`BACKGROUND`: colours under transparent pixels never show.
* **Palette, grey, bilevel, CMYK** become BGR. Colour profiles are not applied.
* **Several pictures in one file** (animated GIF, WebP and PNG, pages of a TIFF): the first.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from runtime.common.addresses import looks_like_address, without_password
from runtime.common.limits import max_file_bytes, too_many_pixels
from runtime.errors import InputError, SourceError
from runtime.images.exif import upright
from runtime.images.foreign import Pil, array_from, check_pil_size, is_pil, pil_orientation, pil_pixels
from runtime.images.header import ImageHeader, read_header

Image: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 BGR, as OpenCV reads it."""

ImageLike: TypeAlias = Any
"""An :data:`Image`, the path or the bytes of an image file, a ``PIL.Image.Image``, or another library's array of an
:data:`Image`'s shape and dtype."""

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

_SUFFIX_OF = {"AVIF": ".avif", "GIF": ".gif", "JPEG 2000": ".jp2"}

BACKGROUND = 255
"""The grey value behind transparent pixels."""

_ALLOWED = "allowed: (H, W, 3) uint8 BGR"

_TOLD = 100  # bad images that one message names


def as_image(value: ImageLike, name: str = "image") -> Image:
    """One image as an (H, W, 3) uint8 BGR array; an array that already is one is returned as it is.

    Raises:
        InputError: Not an image, of another dtype or shape, with more pixels than ``EDGEVIS_MAX_PIXELS``, or a PIL
            image whose values have no known range.
        SourceError: A path or bytes that cannot be read.
    """
    if isinstance(value, (str, os.PathLike)):
        return read_image(value)
    if value is None:
        raise InputError(f"{name} is None: the camera or file gave no frame; check what read() or imread() returned")
    if is_pil(value):
        return _from_pil(value, name)
    if type(value) is np.ndarray and value.ndim == 3 and value.dtype == np.uint8:
        return _check_array(value, name)
    if isinstance(value, (bytes, bytearray)):
        return _from_bytes(bytes(value), name)
    array = array_from(value)
    if array is None:
        raise InputError(
            f"{name} is a {type(value).__name__}; allowed: an (H, W, 3) uint8 BGR array, a path, the bytes of an image "
            "file, or a PIL image"
        )
    if array.ndim == 1 and array.dtype == np.uint8:  # as cv2.imencode() returns it
        return _from_bytes(array.tobytes(), name)
    return _check_array(array, name)


def as_images(value: ImageLike | Sequence[ImageLike]) -> tuple[list[Image], bool]:
    """One image or several as a list, and whether the value was a single image.

    A list, a tuple, an (N, H, W, 3) array or a one-dimensional array of objects is several; of none, the list is empty.

    Raises:
        InputError: An element is not an image; the message names its position.
        SourceError: A path or bytes that cannot be read. One error names all elements that cannot be used.
    """
    items = several(value)
    if items is None:
        return [as_image(value)], True
    images: list[Image] = []
    errors: list[InputError | SourceError] = []
    for index, item in enumerate(items):
        try:
            image = as_image(item, f"image {index} of {len(items)}")
        except (InputError, SourceError) as error:
            errors.append(error)
            images.clear()  # the others are only looked at to name all that are bad
        else:
            if not errors:
                images.append(image)
    if errors:
        raise _all_of(errors, len(items))
    return images, False


def _all_of(errors: Sequence[InputError | SourceError], count: int) -> InputError | SourceError:
    """One error that joins the messages of several."""
    if len(errors) == 1:
        return errors[0]
    more = f"; and {len(errors) - _TOLD} more" if len(errors) > _TOLD else ""
    text = f"{len(errors)} of {count} images cannot be used: {'; '.join(map(str, errors[:_TOLD]))}{more}"
    return InputError(text) if all(isinstance(error, InputError) for error in errors) else SourceError(text)


def several(value: Any) -> Sequence[Any] | None:
    """The images in ``value``; None if it is a single image."""
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, (str, os.PathLike, bytes, bytearray)) or value is None or is_pil(value):
        return None
    array = array_from(value)
    if array is None or not (array.ndim == 4 or (array.ndim == 1 and array.dtype == object)):
        return None
    return list(array)


def orientation_of(value: ImageLike) -> int:
    """The EXIF orientation of an image, 1..8; 1 for an upright image and for an array.

    Raises:
        SourceError: A path or bytes that cannot be read.
    """
    if isinstance(value, (str, os.PathLike)):
        return read_header(read_image_file(value), str(value)).orientation
    if isinstance(value, (bytes, bytearray)):
        return read_header(bytes(value), "image").orientation
    return pil_orientation(value) or 1 if is_pil(value) else 1


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read an image file by this module's rules.

    Raises:
        SourceError: There is no such file, it is too large, or it cannot be decoded.
    """
    return decode_image(read_image_file(path), str(path))


def decode_image(data: bytes, name: str) -> Image:
    """Decode the bytes of an image file; ``name`` is for messages.

    Raises:
        SourceError: It has too many pixels or numbers without a known range, or OpenCV cannot decode it.
    """
    return decode_picture(data, name)[0]


def decode_picture(data: bytes, name: str) -> tuple[Image, int]:
    """Like :func:`decode_image`, plus the stored orientation, 1..8 as in EXIF; masks may be drawn in it."""
    pixels, header = decode_pixels(data, name)
    try:
        image = to_bgr(pixels, header.peak, key=header.key, alpha=header.alpha)
    except ValueError as error:
        raise SourceError(f"{name} {error}") from error
    turned = upright(image, 1 if header.turned else header.orientation)
    return turned.astype(np.uint8, copy=False), header.orientation


def decode_pixels(data: bytes, name: str) -> tuple[npt.NDArray[Any], ImageHeader]:
    """The stored pixels of an image file, (H, W) or (H, W, C) with blue first, before they are turned upright.

    Raises:
        SourceError: It has too many pixels, or OpenCV cannot decode it.
    """
    header = read_header(data, name)
    too_many = too_many_pixels(header.width, header.height)
    if too_many:
        raise SourceError(f"{name} {too_many}")
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise SourceError(f"{name} cannot be decoded: {' '.join(str(error).split())}") from error
    if pixels is None and _SUFFIX_OF.get(header.format, ".png") not in SUFFIXES:
        raise SourceError(f"{name} is a {header.format}, which OpenCV {cv2.__version__} does not read here: convert it")
    if pixels is None:
        raise SourceError(f"{name} is not an image that OpenCV can decode: the {header.format} is cut short or damaged")
    return pixels, header


def to_bgr(
    pixels: npt.NDArray[Any], peak: int | None = None, *, key: int | None = None, alpha: str = "straight"
) -> Image:
    """(H, W, 3) uint8 BGR of stored pixels: (H, W) grey, or (H, W, 2) grey with alpha, (H, W, 3) BGR, (H, W, 4) BGRA.

    Args:
        pixels: uint8 or uint16.
        peak: The greatest value that a sample can have; None for that of the dtype.
        key: The grey value that is transparent.
        alpha: The meaning of a fourth channel: ``straight``, ``premultiplied``, or ``none``.

    Raises:
        ValueError: Other numbers, or 16 bits that hardly use their range; the message follows the image's name.
    """
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    opacity = (pixels != key).astype(np.uint8) * np.uint8(255) if key is not None and pixels.ndim == 2 else None
    colors = pixels if pixels.ndim == 2 else pixels[..., : 1 if pixels.shape[2] == 2 else 3]
    if pixels.dtype == np.uint16 and peak is None:
        _check_range(int(colors.max(initial=0)))
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4) and alpha != "none":
        opacity = _to_8_bits(pixels[..., -1], peak)
    image = _to_8_bits(colors, peak)
    if image.ndim == 2 or image.shape[2] == 1:
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2BGR).astype(np.uint8, copy=False)
    if opacity is not None and int(opacity.min(initial=255)) < 255:
        image = _composite(image, opacity, premultiplied=alpha == "premultiplied")
    return np.ascontiguousarray(image)


def read_image_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file.

    Raises:
        SourceError: There is no such file, it is too large, or it cannot be read.
    """
    if looks_like_address(str(path)):
        raise SourceError(f"{without_password(str(path))} is an address and no image file: give it to stream()")
    path = Path(path)
    most = max_file_bytes()
    try:
        if path.is_dir():
            raise SourceError(f"{path} is a folder; give its images, or the folder to stream()")
        if not path.is_file():
            there = path.exists()
            raise SourceError(f"{path} is not a regular file" if there else f"there is no image file {path}")
        size = path.stat().st_size
        if size > most:
            raise SourceError(
                f"{path} has {size} bytes; image files of at most {most} are read: raise EDGEVIS_MAX_FILE_BYTES"
            )
        return path.read_bytes()
    except SourceError:  # is an OSError, too
        raise
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def _from_bytes(data: bytes, name: str) -> Image:
    most = max_file_bytes()
    if len(data) > most:
        raise SourceError(f"{name} has {len(data)} bytes; at most {most} are read: raise EDGEVIS_MAX_FILE_BYTES")
    try:
        return decode_image(data, name)
    except SourceError as error:
        raise SourceError(f"{error}; bytes are taken for the content of an image file, not for a path") from error


def _from_pil(value: Pil, name: str) -> Image:
    check_pil_size(value, name)
    pixels, peak = pil_pixels(value, name)
    orientation = pil_orientation(value)  # now that it is loaded: PIL turns a TIFF upright as it loads it
    try:
        return upright(to_bgr(pixels, peak), orientation or 1).astype(np.uint8, copy=False)
    except ValueError as error:
        raise InputError(f"{name} {error}") from error


def _check_range(greatest: int) -> None:
    """Raise for 16-bit images that use less than a quarter of their range: as full range they would be almost black."""
    if 0 < greatest < 1 << 14:
        bits = next(bits for bits in (8, 10, 12, 14) if greatest < 1 << bits)
        shift = f"(image >> {bits - 8})" if bits > 8 else "image"
        raise ValueError(
            f"has 16 bits a channel and no value above {greatest}: it may hold {bits} bits in 16, which the file does "
            f"not say; convert it, as by {shift}.astype('uint8')"
        )


def _to_8_bits(pixels: npt.NDArray[Any], peak: int | None) -> npt.NDArray[np.uint8]:
    if pixels.dtype == np.uint8 and peak in (None, 255):
        return pixels
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"has pixels of type {pixels.dtype}, whose range is not known; allowed: 8 or 16 bits, unsigned: "
            "save 0..1 as (image * 255).round().astype('uint8')"
        )
    values, most = np.iinfo(pixels.dtype).max + 1, peak or 65535
    table = np.minimum((np.arange(values, dtype=np.int64) * 255 + most // 2) // most, 255).astype(np.uint8)
    output = np.empty(pixels.shape, np.uint8)
    for part in _strips(pixels):  # NumPy makes 8 bytes of each index
        output[part] = table[pixels[part]]
    return output


def _strips(image: npt.NDArray[Any]) -> Iterator[slice]:
    """Slices of rows of about a million pixels, so that intermediate arrays stay small beside the picture."""
    rows = max(1, (1 << 20) // max(1, image.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(image), rows))


def _composite(image: Image, opacity: npt.NDArray[np.uint8], *, premultiplied: bool) -> Image:
    """Blend the image with the background, in strips: the arithmetic needs more bits than the result."""
    output = np.empty_like(image)
    for part in _strips(image):
        covered = opacity[part, :, None].astype(np.uint16)
        behind = (255 - covered) * np.uint16(BACKGROUND)
        front = image[part].astype(np.uint16)
        if premultiplied:
            output[part] = np.minimum(front + (behind + 127) // 255, 255)
        else:
            output[part] = (front * covered + behind + 127) // 255
    return output


def _check_array(array: npt.NDArray[Any], name: str) -> Image:
    shown = f"{name} has shape {array.shape} and dtype {array.dtype}"
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        if 0 in array.shape:
            raise InputError(f"{shown}: it has no pixels; check the crop's corners")
        too_many = too_many_pixels(array.shape[1], array.shape[0])
        if too_many:
            raise InputError(f"{name} {too_many}")
        return array
    hints = [hint for hint in (_type_hint(array), _shape_hint(array.shape)) if hint]
    raise InputError("; ".join([shown, _ALLOWED, *hints]))


def _type_hint(array: npt.NDArray[Any]) -> str | None:
    """A hint how to convert these values to 0..255."""
    if array.dtype == np.uint8 or array.size == 0:
        return None
    if array.dtype == np.bool_:
        return "values become 0 and 255 by image.astype('uint8') * 255"
    if array.dtype.kind not in "uif":
        return None
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return "it holds NaN or infinity, of which no pixel can be made"
    if low < 0 or high > 65535:
        return f"its values are {low:g} to {high:g}: scale them to 0..255, round, and take .astype('uint8')"
    if array.dtype.kind == "f" and high <= 1:
        return "a float image in 0..1 becomes one by (image * 255).round().astype('uint8')"
    if array.dtype.kind == "f" and high <= 255:
        return "a float image in 0..255 becomes one by image.round().astype('uint8'), without a factor"
    if high <= 255 and array.dtype != np.uint16:
        return "whole numbers in 0..255 become one by image.astype('uint8')"
    if high < 1 << 14:
        bits = next(bits for bits in (8, 10, 12, 14) if high < 1 << bits)
        return f"its values go to {high:g}: if they have {bits} bits, (image / {2**bits - 1} * 255).astype('uint8')"
    return "full-range 16 bits become one by (image / 257).round().astype('uint8')"


def _shape_hint(shape: tuple[int, ...]) -> str | None:
    """A hint how to convert an array of this shape to (H, W, 3)."""
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        return "a grey image becomes one by cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)"
    if len(shape) == 3 and shape[2] == 4:
        return "drop an alpha channel by cv2.cvtColor(image, cv2.COLOR_BGRA2BGR), or lay the image on a background"
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return (
            "channels are first: image.transpose(1, 2, 0) puts them last; if they are RGB, [..., ::-1] makes them BGR"
        )
    if len(shape) == 4 and shape[1] in (1, 3, 4):
        return "channels are before rows: images.transpose(0, 2, 3, 1) puts them last"
    return None
