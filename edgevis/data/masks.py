"""Masks: PNG files whose pixels are whole numbers – class ids or instance ids – and not colours."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgevis.data.files import Files
from runtime.errors import SourceError
from runtime.images import Image

IGNORE = 255
"""The value of pixels that count neither as a class nor as background (PASCAL VOC's convention)."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3


def read_mask(files: Files, name: str) -> NDArray[np.uint8 | np.uint16]:
    """The numbers of a PNG, (H, W) uint8 or uint16.

    Of a PNG with a palette, as in PASCAL VOC, they are the palette's indices, and not its colours; of one with 1, 2 or
    4 bits the stored values, and not what they are as brightness. A PNG with three equal channels is taken as one.

    Raises:
        SourceError: It cannot be read, is no PNG, or holds colours.
    """
    data, where = files.read(name), files.where(name)
    if not data.startswith(_SIGNATURE) or len(data) < 33:
        raise SourceError(f"{where} is not a PNG; other formats do not keep a mask's values")
    depth, kind = data[24], data[25]
    try:
        pixels: Any = cv2.imdecode(
            np.frombuffer(_as_grey(data) if kind == _PALETTE else data, np.uint8), cv2.IMREAD_UNCHANGED
        )
    except (cv2.error, struct.error) as error:
        raise SourceError(f"{where} cannot be decoded: {error}") from error
    if pixels is None:
        raise SourceError(f"{where} is damaged")
    if pixels.ndim == 3:
        if (pixels[..., :3] != pixels[..., :1]).any():
            raise SourceError(
                f"{where} holds colours; a mask holds class ids, as grey values or as a palette's indices"
            )
        pixels = pixels[..., 0]
    if depth < 8 and kind in (_GREY, _PALETTE):
        pixels = pixels // (255 // (2**depth - 1))
    if pixels.dtype not in (np.uint8, np.uint16):
        raise SourceError(f"{where} has pixels of type {pixels.dtype}; allowed: 8 or 16 bits")
    mask: NDArray[np.uint8 | np.uint16] = np.ascontiguousarray(pixels)
    return mask


def read_class_ids(files: Files, name: str) -> NDArray[np.uint8]:
    """A mask of class ids, (H, W) uint8.

    Raises:
        SourceError: As :func:`read_mask`, or it has 16 bits.
    """
    mask = read_mask(files, name)
    if mask.dtype != np.uint8:
        raise SourceError(f"{files.where(name)} has 16 bits a pixel, as instance ids have; class ids have 8")
    return mask.astype(np.uint8, copy=False)


def check_same_size(image: Image, mask: NDArray[Any], files: Files, names: tuple[str, str]) -> None:
    """Raise SourceError when an image and its mask are not equally large."""
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        raise SourceError(
            f"{files.path}: {names[0]} is {width}x{height}, its mask {names[1]} {mask_width}x{mask_height}; "
            "they must be equally large"
        )


def _as_grey(data: bytes) -> bytes:
    """The PNG without its palette: its indices become grey values. OpenCV only gives a palette's colours."""
    parts, position = [_SIGNATURE], len(_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            body = body[:9] + bytes([_GREY]) + body[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
        position += 12 + length
    return b"".join(parts)
