"""Masks: PNG files whose pixels are whole numbers – class ids or instance ids – and not colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevis.data.files import Files
from runtime.errors import SourceError
from runtime.images import Image
from runtime.masks import decode_mask

IGNORE = 255
"""The value of pixels that count neither as a class nor as background (PASCAL VOC's convention)."""


def read_mask(files: Files, name: str) -> NDArray[np.uint8 | np.uint16]:
    """The numbers of a PNG, (H, W) uint8 or uint16, as :func:`runtime.masks.decode_mask` takes them.

    Raises:
        SourceError: It cannot be read, is no PNG, or holds colours.
    """
    return decode_mask(files.read(name), files.where(name))


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
