"""What counts as a mask: an array, a PNG or a PIL image whose pixels are whole numbers and not colours."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from runtime.errors import InputError, SourceError
from runtime.images import Image, read_image_file

Mask: TypeAlias = npt.NDArray[np.bool_]
"""(H, W) bool, True on the object."""

MaskLike: TypeAlias = Any
"""A :data:`Mask`, (H, W) integers of which one value besides 0 is the object, the path of such an image, or a
``PIL.Image.Image``."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3


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


def decode_mask(data: bytes, name: str) -> npt.NDArray[np.uint8 | np.uint16]:
    """The numbers of a PNG, (H, W) uint8 or uint16; ``name`` is for messages.

    Of a PNG with a palette, as in PASCAL VOC, they are the palette's indices, and not its colours; of one with 1, 2 or
    4 bits the stored values, and not what they are as brightness. A PNG with three equal channels is taken as one.

    Raises:
        SourceError: It is no PNG, is damaged, or holds colours.
    """
    if not data.startswith(_SIGNATURE) or len(data) < 33:
        raise SourceError(f"{name} is not a PNG; other formats do not keep a mask's values")
    depth, kind = data[24], data[25]
    try:
        pixels: Any = cv2.imdecode(
            np.frombuffer(_as_grey(data) if kind == _PALETTE else data, np.uint8), cv2.IMREAD_UNCHANGED
        )
    except (cv2.error, struct.error) as error:
        raise SourceError(f"{name} cannot be decoded: {error}") from error
    if pixels is None:
        raise SourceError(f"{name} is damaged")
    if pixels.ndim == 3:
        if (pixels[..., :3] != pixels[..., :1]).any():
            raise SourceError(f"{name} holds colours; a mask holds numbers, as grey values or as a palette's indices")
        pixels = pixels[..., 0]
    if depth < 8 and kind in (_GREY, _PALETTE):
        pixels = pixels // (255 // (2**depth - 1))
    if pixels.dtype not in (np.uint8, np.uint16):
        raise SourceError(f"{name} has pixels of type {pixels.dtype}; allowed: 8 or 16 bits")
    mask: npt.NDArray[np.uint8 | np.uint16] = np.ascontiguousarray(pixels)
    return mask


def _as_mask(value: MaskLike, image: Image, name: str) -> Mask:
    if isinstance(value, (str, os.PathLike)):
        value = decode_mask(read_image_file(value), str(value))
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
