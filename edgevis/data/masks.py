"""Masks: images whose pixels are whole numbers – class ids or instance ids – and not colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevis.data.files import Files
from runtime.errors import InputError, SourceError
from runtime.images.decode import Image, decode_picture
from runtime.images.masks import StoredMask, decode_mask, laid_beside

IGNORE = 255
"""The value of pixels that count neither as a class nor as background (PASCAL VOC's convention)."""


def read_mask(files: Files, name: str) -> StoredMask:
    """The numbers of a mask as :mod:`runtime.images.masks` takes them; of an alpha channel 0 and 1.

    Raises:
        SourceError: It cannot be read, or holds colours.
    """
    return decode_mask(files.read(name), files.where(name))


def read_class_ids(files: Files, name: str) -> NDArray[np.uint8]:
    """A mask of class ids as it is stored, (H, W) uint8; an alpha channel marks class 1.

    Raises:
        SourceError: As :func:`read_mask`, or it has 16 bits.
    """
    return as_class_ids(read_mask(files, name).numbers, files.where(name))


def as_class_ids(numbers: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """The mask as uint8; SourceError if its values need 16 bits."""
    if numbers.dtype != np.uint8:
        raise SourceError(f"{name} has 16 bits a pixel, as instance ids have; class ids have 8")
    return numbers.astype(np.uint8, copy=False)


def read_pair(files: Files, image_name: str, mask_name: str) -> tuple[Image, NDArray[Any], StoredMask]:
    """An image, (H, W, 3) uint8 BGR, and the numbers of its mask, (H, W), both upright; and the mask as stored.

    Raises:
        SourceError: One of them cannot be decoded, they are not equally large, or they may be turned apart.
    """
    image, orientation = decode_picture(files.read(image_name), files.where(image_name))
    mask = read_mask(files, mask_name)
    try:
        return image, laid_beside(mask, image, orientation, mask_name), mask
    except InputError as error:
        raise SourceError(f"{files.path}: {image_name} and its mask do not fit together: {error}") from error
