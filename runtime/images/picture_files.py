"""Picture files that edgevis writes: they carry a mark, and never replace a file without it."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from runtime.common.files import atomic_write, open_regular
from runtime.errors import OutputError

_MARK = b"written by edgevis"
_HEAD_BYTES = 128  # the mark lies in them, for it follows the first segment of a JPEG and the first chunk of a PNG
_START_OF_IMAGE, _FIRST_SEGMENT = b"\xff\xd8", b"\xff\xe0"
_COMMENT = b"\xff\xfe"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_END = 33  # the signature's 8 bytes and IHDR's 25


def encode_drawing(picture: npt.NDArray[np.uint8], suffix: str) -> bytes:
    """Encode a JPEG or PNG file with a mark that :func:`is_drawing` recognises.

    Args:
        picture: (H, W, 3) uint8 BGR, or (H, W) uint8.
        suffix: ``".jpg"`` or ``".png"``.

    Raises:
        OutputError: OpenCV cannot encode it, as a JPEG of more than 65500 pixels across.
    """
    try:
        done, encoded = cv2.imencode(suffix, picture)
    except cv2.error as error:
        raise OutputError(f"a picture of {picture.shape} cannot be encoded as {suffix}: {error}") from error
    if not done:
        raise OutputError(f"a picture of {picture.shape} cannot be encoded as {suffix}")
    data = encoded.tobytes()
    if data.startswith(_PNG):
        body = b"tEXt" + b"Software\0" + _MARK
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return data[:_PNG_HEADER_END] + chunk + data[_PNG_HEADER_END:]
    # JFIF's own segment, where there is one, must stay the first.
    jfif = data[2:4] == _FIRST_SEGMENT
    start = 4 + int.from_bytes(data[4:6], "big") if jfif else len(_START_OF_IMAGE)
    return data[:start] + _COMMENT + struct.pack(">H", 2 + len(_MARK)) + _MARK + data[start:]


def is_drawing(path: str | os.PathLike[str]) -> bool:
    """Whether :func:`encode_drawing` made a file; False if it cannot be read."""
    try:
        with open_regular(path) as file:
            return _MARK in file.read(_HEAD_BYTES)
    except (OSError, ValueError):
        return False


def may_be_drawn(path: Path) -> bool:
    """Whether a picture may be written to a path: it is free, or holds an earlier drawing that is no link.

    Raises:
        OSError: The path cannot be examined, as in a folder without search permission.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return True
    return stat.S_ISREG(status.st_mode) and is_drawing(path)


def write_drawing(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write a picture atomically, creating its folder. The suffix, ``.jpg`` or ``.png``, selects the format.

    Raises:
        OutputError: It cannot be written, or something else than an earlier drawing is there, which stays.
    """
    data = encode_drawing(picture, path.suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not may_be_drawn(path):
            raise OutputError(f"{path} is there already and was not drawn by edgevis; it is left as it is")
        with atomic_write(path, durable=False) as file:
            file.write(data)
    except OutputError:  # is an OSError, too
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
