"""The headers of image files in ISO/IEC 14496-12 boxes: AVIF and JPEG 2000."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_J2K = b"\xff\x4f\xff\x51"


def avif_header(data: bytes) -> tuple[int, int, int, int]:
    """Width, height, bits of a sample, and the orientation (1..8, as EXIF counts) of an AVIF file.

    OpenCV 5.0 leaves the rotation and mirroring that its boxes ask for to the caller.

    Raises:
        ValueError, struct.error: The file is damaged.
    """
    meta = next((body for kind, body in _boxes(data) if kind == b"meta"), None)
    if meta is None:
        raise ValueError("the AVIF file has no header")
    inside = dict(_boxes(meta[4:]))
    (primary,) = struct.unpack_from(">I" if inside[b"pitm"][0] else ">H", inside[b"pitm"], 4)
    properties = dict(_boxes(inside[b"iprp"]))
    listed = list(_boxes(properties[b"ipco"]))
    sizes = [struct.unpack_from(">II", body, 4) for kind, body in listed if kind == b"ispe"]
    bits = [max(body[5 : 5 + body[4]], default=8) for kind, body in listed if kind == b"pixi"]
    item_boxes = [listed[index - 1] for index in _associated(properties[b"ipma"], primary) if 1 <= index <= len(listed)]
    angle = next((body[0] & 3 for kind, body in item_boxes if kind == b"irot"), 0)
    axis = next((body[0] & 1 for kind, body in item_boxes if kind == b"imir"), None)
    width, height = max((size[0] for size in sizes), default=0), max((size[1] for size in sizes), default=0)
    return width, height, max(bits, default=8), _ORIENTATIONS[angle, axis]


def jp2_header(data: bytes) -> tuple[int, int, int]:
    """Width, height and bits of a sample of a JPEG 2000 file, from its codestream.

    Raises:
        ValueError, struct.error: The file is damaged.
    """
    start = data.index(_J2K)
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    return right - left, bottom - top, (data[start + 42] & 0x7F) + 1


# From a quarter turn anticlockwise, so many times, and then a mirroring: none, of the rows, of the columns.
_ORIENTATIONS = {
    (0, None): 1,
    (0, 0): 4,
    (0, 1): 2,
    (1, None): 8,
    (1, 0): 5,
    (1, 1): 7,
    (2, None): 3,
    (2, 0): 2,
    (2, 1): 4,
    (3, None): 6,
    (3, 0): 7,
    (3, 1): 5,
}


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        start = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
            start = 16
        elif length == 0:  # to the end
            length = len(data) - position
        if length < start:
            raise ValueError("a box is shorter than its own header")
        yield kind, data[position + start : position + length]
        position += length


def _associated(table: bytes, item: int) -> list[int]:
    """The properties of an item, by their position from 1, from the box ``ipma``."""
    version, wide = table[0], table[3] & 1
    (count,) = struct.unpack_from(">I", table, 4)
    position = 8
    for _ in range(count):
        (number,) = struct.unpack_from(">I" if version else ">H", table, position)
        position += 4 if version else 2
        properties = table[position]
        position += 1
        form = ">H" if wide else ">B"
        indices = [struct.unpack_from(form, table, position + i * (1 + wide))[0] for i in range(properties)]
        if number == item:
            return [index & (0x7FFF if wide else 0x7F) for index in indices]
        position += properties * (1 + wide)
    return []
