"""TIFF tag directories, which EXIF uses too, and the orientation in EXIF or XMP."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

import cv2
import numpy as np

from runtime.common.arrays import Array

ORIENTATION = 274
_BYTES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # BYTE, SHORT, LONG, LONG8
_XMP = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])")
_MAX_VALUES = 64


def first_directory(data: bytes) -> Mapping[int, tuple[int, ...]]:
    """The integers of a TIFF file's first directory, by tag; only the first few of a long list.

    Raises:
        ValueError: It is no TIFF, or its directory lies outside of it.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("no TIFF")
    try:
        return _directory(data, order)
    except struct.error as error:
        raise ValueError(f"the TIFF directory is cut short: {error}") from error


def exif_orientation(exif: bytes) -> int | None:
    """The orientation of an EXIF block, 1..8; None if it has none."""
    try:
        (value, *_) = first_directory(exif.removeprefix(b"Exif\0\0")).get(ORIENTATION, (0,))
    except ValueError:
        return None
    return value if 1 <= value <= 8 else None


def xmp_orientation(xmp: bytes) -> int | None:
    """The orientation of an XMP packet, 1..8; None if it has none."""
    match = _XMP.search(xmp)
    return int(match[1]) if match else None


def upright(pixels: Array, orientation: int) -> Array:
    """Stored pixels (H, W) or (H, W, C), rotated and mirrored by their orientation, 1..8; 1 is upright."""
    if orientation in (5, 6, 7, 8):
        pixels = cv2.transpose(pixels)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else np.asarray(cv2.flip(pixels, flip))


def _directory(data: bytes, order: str) -> dict[int, tuple[int, ...]]:
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    if version == 43:  # BigTIFF
        (start,) = struct.unpack_from(f"{order}Q", data, 8)
        (count,) = struct.unpack_from(f"{order}Q", data, start)
        start, size, form, inline = start + 8, 20, f"{order}HHQ", 8
    elif version == 42:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        start, size, form, inline = start + 2, 12, f"{order}HHI", 4
    else:
        raise ValueError(f"TIFF has no version {version}")
    tags: dict[int, tuple[int, ...]] = {}
    for index in range(min(count, 4096)):
        place = start + index * size
        tag, kind, values = struct.unpack_from(form, data, place)
        if kind not in _BYTES:
            continue
        values = min(values, _MAX_VALUES)
        entry = f"{order}{values}{_BYTES[kind]}"
        place += struct.calcsize(form)
        if struct.calcsize(entry) > inline:
            (place,) = struct.unpack_from(f"{order}{'Q' if inline == 8 else 'I'}", data, place)
        tags.setdefault(tag, struct.unpack_from(entry, data, place))
    return tags
