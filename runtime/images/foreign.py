"""Images of other libraries: PIL images and arrays that are not NumPy's. No such library is imported here."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.common.limits import too_many_pixels
from runtime.errors import InputError, SourceError

Pil: TypeAlias = Any
"""A ``PIL.Image.Image``."""

_ORIENTATION = 0x0112
_PHOTOMETRIC = 262
# What convert() is given for each mode; alpha is kept where there may be any, to be laid on our background.
_CONVERSIONS = {
    "1": "L",
    "L": "L",
    "La": "LA",
    "LA": "LA",
    "PA": "RGBA",
    "RGB": "RGB",
    "RGBX": "RGB",
    "RGBA": "RGBA",
    "RGBa": "RGBA",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
}
# Formats whose only pixels of mode "I" are 16 bits in PIL before 11, or those of a PGM scaled to 16 bits.
_SIXTEEN_BITS = ("PNG", "PPM")


def array_from(value: Any) -> npt.NDArray[Any] | None:
    """A NumPy array of any library's CPU array, sharing its memory if possible; None for other values."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if not (isinstance(value, memoryview) or hasattr(value, "__array__") or hasattr(value, "__array_interface__")):
        return None
    try:
        return np.asarray(value)
    except Exception as error:  # each library has its own: of a tensor on a GPU, TypeError; that needs a gradient, …
        raise InputError(
            f"a {type(value).__module__}.{type(value).__name__} does not become a NumPy array: {error}; "
            "give one, as by tensor.detach().cpu().numpy()"
        ) from error


def is_pil(value: Any) -> bool:
    """Whether ``value`` is a PIL image: it can only be one when the caller has imported PIL."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def check_pil_size(value: Pil, name: str) -> None:
    """Raise InputError for a PIL image without pixels, and for one with more than the limit, before it is decoded."""
    too_many = too_many_pixels(*value.size)
    if too_many:
        raise InputError(f"{name} {too_many}")
    if 0 in value.size:
        raise InputError(f"{name} is {value.size[0]} x {value.size[1]}: it has no pixels; check the crop's corners")


def pil_orientation(value: Pil) -> int | None:
    """The orientation that a PIL image's EXIF (or XMP) gives, 1..8; None where it gives none."""
    try:
        orientation = value.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF, of which PIL raises a dozen classes; its pixels may still be sound
        return None
    return int(orientation) if isinstance(orientation, int) and 1 <= orientation <= 8 else None


def pil_pixels(value: Pil, name: str) -> tuple[npt.NDArray[Any], int | None]:
    """The stored pixels of a PIL image in OpenCV's layout, before rotation to upright, and their maximum value.

    Returns:
        (H, W) grey, (H, W, 2) grey and alpha, (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16; and the greatest value
        that a sample can have, None for that of the dtype.

    Raises:
        InputError: Its mode has no known range or colours.
        SourceError: Its file cannot be decoded.
    """
    mode = value.mode
    deep = mode in ("RGB", "RGBA") and any(";16" in str(tile) for tile in getattr(value, "tile", ()))
    try:
        if mode.startswith("I;16") or (mode == "I" and value.format in _SIXTEEN_BITS):
            wide = np.asarray(value)
            if getattr(value, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
                raise InputError(f"{name} is a TIFF of 16 bits in which 0 is white, and PIL reads black: convert it")
            return _keyed(wide.astype(np.uint16), value), None
        if mode == "P" or (mode in ("1", "L", "RGB") and "transparency" in value.info):
            target = "RGBA" if "transparency" in value.info else "RGB"
        elif mode in _CONVERSIONS:
            target = _CONVERSIONS[mode]
        else:
            raise InputError(
                f"{name} is a PIL image of mode {mode}, whose range or colours are not known; give it as RGB or L, "
                "scaled to 0..255"
            )
        pixels = np.asarray(value if mode == target else value.convert(target))
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # PIL reads a file's pixels only now
        raise SourceError(f"{name} cannot be decoded by PIL: {error}") from error
    if deep and 0 < int(pixels[..., :3].max(initial=0)) < 64:
        raise InputError(
            f"{name} has 16 bits a channel in its file and hardly uses them: it may hold 10, 12 or 14 bits; convert it"
        )
    if target in ("L", "LA"):
        return pixels, None
    return pixels[..., [2, 1, 0, 3] if target == "RGBA" else [2, 1, 0]], None


def _keyed(pixels: npt.NDArray[np.uint16], value: Pil) -> npt.NDArray[np.uint16]:
    """The image with an alpha channel if it declares one value as transparent."""
    key = value.info.get("transparency")
    if not isinstance(key, int):
        return pixels
    return np.dstack([pixels, np.where(pixels == key, 0, 65535).astype(np.uint16)])
