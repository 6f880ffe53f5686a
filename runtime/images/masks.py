"""Accepted masks: an array, an image file or a PIL image whose pixels are whole numbers and not colours.

Every mask, in enrolment and in training, is read by these rules:

* **Numbers.** Grey values, or of a PNG with a palette, as in PASCAL VOC, its indices; three equal channels count as
  one. 0 is not the object. In enrolment one other value marks it; several (instances, a smoothed or JPEG mask) are
  refused.
* **Void.** In a mask with a palette, 255 beside another value is PASCAL VOC's border: not the object.
* **Alpha.** Where the colours say nothing (a cut-out, one colour throughout) the alpha channel is the mask, from half
  of its range on. Where colours and alpha mark different pixels, the mask is refused.
* **Orientation.** A mask's own is applied. One without, beside a photograph that EXIF turns, is turned with it where
  its size says that it was painted on the photograph as stored; where the size does not tell (square pictures, half
  turns, mirrorings) the pair is refused, unless it makes no difference.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.errors import InputError, SourceError
from runtime.images.decode import Image, decode_pixels, read_image_file
from runtime.images.exif import upright
from runtime.images.foreign import Pil, array_from, check_pil_size, is_pil, pil_orientation
from runtime.images.header import ImageHeader, png_chunks, read_header

_log = logging.getLogger("edgevis.images")

Mask: TypeAlias = npt.NDArray[np.bool_]
"""(H, W) bool, True on the object."""

MaskLike: TypeAlias = Any
"""A :data:`Mask`, (H, W), (H, W, 1) or (H, W, 3) integers of which one value besides 0 is the object, the path of such
an image, or a ``PIL.Image.Image``."""

VOID = 255

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY = 0
# Colours under alpha with more different greys than this are a photograph's.
_MAX_IDS = 64
# More values than this are hardly instances.
_MANY = 16
_SHOWN = 6
_LOSSY = ("JPEG", "MPO", "AVIF", "JPEG2000")
# Of PIL; others have no whole numbers, or other ones than what is stored.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True, slots=True, eq=False)
class StoredMask:
    """The stored numbers of a mask, before its orientation is matched to the image's.

    Attributes:
        numbers: (H, W) uint8 or uint16 (of an array or a PIL image, any integers); of an alpha channel, 0 and 1.
        from_alpha: Whether they are the alpha channel.
        indexed: Whether they are indices of a palette.
        orientation: The mask file's EXIF orientation, 1..8; 1 also where it has none.
    """

    numbers: npt.NDArray[Any]
    from_alpha: bool = False
    indexed: bool = False
    orientation: int = 1


def as_masks(
    value: MaskLike | Sequence[MaskLike], images: Sequence[Image], orientations: Sequence[int] | None = None
) -> list[Mask]:
    """One mask for each image.

    Args:
        value: One mask, or a list, a tuple or an (N, H, W) array of them.
        images: The images of the masks, upright.
        orientations: Each image's EXIF orientation, 1..8; None for upright.

    Raises:
        InputError: Another number of masks than of images, a mask of another size than its image, with more than one
            value besides 0, one that marks nothing, or one that may be turned otherwise than its image; the message
            names its position.
        SourceError: A path that cannot be read, or an image file that holds no mask.

    Warns:
        RuntimeWarning: A mask marks every pixel.
    """
    values, several = _items(value, images)
    if len(values) != len(images):
        raise InputError(f"{len(values)} masks for {len(images)} images; give one mask for each image")
    names = [f"mask {index} of {len(values)}" if several else "mask" for index in range(len(values))]
    turned = [1] * len(images) if orientations is None else orientations
    return [
        _as_mask(item, image, orientation, name)
        for item, image, orientation, name in zip(values, images, turned, names, strict=True)
    ]


def decode_mask(data: bytes, name: str) -> StoredMask:
    """The numbers of an image file; ``name`` is for messages.

    Of 1, 2 or 4 bits they are the stored values, and not what they are as brightness.

    Raises:
        SourceError: It is damaged, has too many pixels, or holds colours.
    """
    header = read_header(data, name)
    if header.lossy:
        raise SourceError(f"{name} is a {header.format}, which does not keep a mask's values; save it as PNG")
    if header.palette and header.format != "PNG":
        raise SourceError(f"{name} is a {header.format} with a palette, whose indices OpenCV does not give: save a PNG")
    indexed = header.palette
    pixels, _ = decode_pixels(_as_grey(data) if indexed else data, name)
    numbers = pixels
    if header.format == "PNG" and header.depth < 8 and pixels.ndim == 2:
        numbers = pixels // (255 // (2**header.depth - 1))
    if numbers.dtype not in (np.uint8, np.uint16):
        raise SourceError(f"{name} has pixels of type {numbers.dtype}; allowed: 8 or 16 bits")
    try:
        opacity = _opacity(data, header, numbers, pixels)
        mask = _stored(numbers, opacity, indexed=indexed)
    except ValueError as error:
        raise SourceError(f"{name} {error}") from error
    orientation = 1 if header.turned else header.orientation
    return StoredMask(mask.numbers, mask.from_alpha, indexed, orientation)


def laid_beside(mask: StoredMask, image: Image, orientation: int, name: str) -> npt.NDArray[Any]:
    """The numbers of a mask, rotated and mirrored like its image.

    Args:
        mask: The mask as stored.
        image: The image of the mask, upright.
        orientation: The image's EXIF orientation, 1..8.
        name: The mask, for messages.

    Raises:
        InputError: Its size is not the image's, or it may be turned otherwise.
    """
    size = image.shape[:2]
    numbers = upright(mask.numbers, mask.orientation)
    if mask.orientation == 1 and orientation != 1:
        turned = upright(numbers, orientation)
        if turned.shape == size and numbers.shape == size and not np.array_equal(turned, numbers):
            raise InputError(
                f"{name} has no orientation, its photograph has EXIF orientation {orientation}, and their size does "
                "not say whether the mask was painted on the photograph as stored or as shown: save the photograph "
                "upright (PIL.ImageOps.exif_transpose), or give both as upright arrays"
            )
        if turned.shape == size:
            numbers = turned
    if numbers.shape != size:
        raise InputError(f"{name} is {numbers.shape}, its image {size}; give a mask of the image's size")
    return numbers


def _items(value: Any, images: Sequence[Image]) -> tuple[list[Any], bool]:
    """The masks as a list, and whether the value held several."""
    if isinstance(value, (list, tuple)):
        return list(value), True
    array = None if isinstance(value, (str, os.PathLike, bytes, bytearray)) or is_pil(value) else array_from(value)
    if array is None or array.ndim < 3:
        return [value], False
    if array.ndim == 3 and len(images) == 1 and array.shape[2] <= 4:
        size = images[0].shape[:2]
        if array.shape[:2] in (size, size[::-1]):  # one mask with a channel axis
            return [array], False
    return list(array), True


def _as_mask(value: MaskLike, image: Image, orientation: int, name: str) -> Mask:
    if isinstance(value, (str, os.PathLike)):
        name = f"{name}, {os.fspath(value)},"
        stored = decode_mask(read_image_file(value), str(value))
    elif isinstance(value, (bytes, bytearray)):
        stored = decode_mask(bytes(value), name)
    else:
        try:
            stored = _from_pil(value, name) if is_pil(value) else _from_array(value, name)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{name} {error}") from error
    numbers = laid_beside(stored, image, orientation, name)
    values = np.unique(numbers)
    marks = values[values != 0]
    if stored.indexed and len(marks) == 2 and marks[1] == VOID:
        marks = marks[:1]
    if len(marks) == 0:
        raise InputError(f"{name} marks nothing: all of it is 0; set the object's pixels")
    if len(marks) > 1:
        raise InputError(f"{name} has the values {_shown(values)}; {_cure(values, marks)}")
    mask: Mask = numbers == marks[0]
    if mask.all():
        _log.warning(
            "%s marks every pixel: all of it is %s, which leaves nothing to tell the object from; set what is not the "
            "object to 0",
            name,
            marks[0],
        )
    return mask


def _shown(values: npt.NDArray[Any]) -> str:
    return ", ".join(map(str, values[:_SHOWN].tolist())) + (" …" if len(values) > _SHOWN else "")


def _cure(values: npt.NDArray[Any], marks: npt.NDArray[Any]) -> str:
    if len(values) > _MANY:
        return "it is smoothed, was a JPEG, or is a photograph: threshold it, as by mask > 127, and save a PNG"
    void = " (255 is taken for a void border only beside one id in a PNG with a palette)" if marks[-1] == VOID else ""
    return f"say which is the object, as by mask == {marks[0]}{void}"


def _from_array(value: Any, name: str) -> StoredMask:
    array = array_from(value)
    if array is None:
        raise InputError(f"{name} is a {type(value).__name__}; allowed: an (H, W) bool or integer array, a path, PIL")
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or not 1 <= channels <= 4 or array.dtype.kind not in "bui":
        raise InputError(
            f"{name} has shape {array.shape} and dtype {array.dtype}; allowed: (H, W), bool or integers: "
            "probability > 0.5 makes one of a float map"
        )
    if channels in (2, 4) and array.dtype != np.uint8:
        raise InputError(f"{name} has an alpha channel and dtype {array.dtype}; allowed with alpha: uint8")
    return _stored(array, array[..., -1] if channels in (2, 4) else None)


def _from_pil(value: Pil, name: str) -> StoredMask:
    check_pil_size(value, name)
    if value.format in _LOSSY:
        raise InputError(f"{name} is a {value.format}, which does not keep a mask's values; save it as PNG")
    try:
        pixels = np.asarray(value)
    except (OSError, SyntaxError) as error:  # PIL reads a file's pixels only now
        raise SourceError(f"{name} cannot be decoded by PIL: {error}") from error
    if pixels.dtype.kind not in "bui" or value.mode not in _MODES:
        raise InputError(f"{name} is a PIL image of mode {value.mode}; allowed: 1, L, P, I, LA, RGB, RGBA")
    opacity = pixels[..., -1] if value.mode in ("LA", "PA", "RGBA") else None
    key = value.info.get("transparency")
    if value.mode == "P" and key is not None:
        table = np.full(256, 255, np.uint8)
        if isinstance(key, bytes):
            table[: len(key)] = np.frombuffer(key, np.uint8)[:256]
        else:
            table[key] = 0
        opacity = table[pixels]
    elif pixels.ndim == 2 and isinstance(key, int) and value.mode != "1":
        opacity = np.where(pixels == key, 0, 255)
    stored = _stored(pixels[..., :3] if value.mode == "RGBX" else pixels, opacity, indexed=value.mode in ("P", "PA"))
    return StoredMask(stored.numbers, stored.from_alpha, stored.indexed, pil_orientation(value) or 1)


def _stored(pixels: npt.NDArray[Any], opacity: npt.NDArray[Any] | None, *, indexed: bool = False) -> StoredMask:
    """Select the mask from an image's colours or its alpha channel.

    Raises:
        ValueError: It holds colours, or both say different things; the message follows the mask's name.
    """
    numbers = pixels if pixels.ndim == 2 else pixels[..., 0]
    colors = pixels[..., :3] if pixels.ndim == 3 and pixels.shape[2] >= 3 else None
    colored = colors is not None and bool((colors != colors[..., :1]).any())
    if opacity is None or opacity.min() == opacity.max() != 0:
        if colored:
            raise ValueError("holds colours; a mask holds numbers, as grey values or as a palette's indices")
        return StoredMask(np.ascontiguousarray(numbers), indexed=indexed)
    if opacity.max() == 0:
        raise ValueError("is transparent everywhere; save it without an alpha channel, or with the object opaque")
    most = np.iinfo(opacity.dtype).max if opacity.dtype in (np.uint8, np.uint16) else 255
    object_ = opacity > most // 2
    if not colored and not _says_nothing(numbers, opacity, indexed):
        marked = numbers != 0
        if (object_ & ~marked).any() or (marked & (opacity == 0)).any():
            raise ValueError(
                "has an alpha channel that marks other pixels than its values do; save it with one of the two"
            )
        return StoredMask(np.where(object_, numbers, numbers.dtype.type(0)), indexed=indexed)
    return StoredMask(object_.astype(np.uint8), from_alpha=True)


def _says_nothing(numbers: npt.NDArray[Any], opacity: npt.NDArray[Any], indexed: bool) -> bool:
    """Whether the values are no ids: constant, a photograph's, or a copy of the alpha channel."""
    values = len(np.unique(numbers))
    return not indexed and (values == 1 or values > _MAX_IDS or np.array_equal(numbers, opacity))


def _opacity(
    data: bytes, header: ImageHeader, numbers: npt.NDArray[Any], pixels: npt.NDArray[Any]
) -> npt.NDArray[Any] | None:
    """The alpha of decoded pixels: from a channel, a declared transparent value, or the palette."""
    if header.palette:
        table = next((body for kind, body in png_chunks(data) if kind == b"tRNS"), None)
        if table is None:
            return None
        opacity = np.full(256, 255, np.uint8)
        opacity[: len(table)] = np.frombuffer(table, np.uint8)[:256]
        return np.asarray(opacity[numbers])
    if pixels.ndim == 2:
        return None if header.key is None else np.where(pixels == header.key, 0, 255)
    return pixels[..., -1] if pixels.shape[2] in (2, 4) and header.alpha != "none" else None


def _as_grey(data: bytes) -> bytes:
    """A palette PNG rewritten as grey, so that its indices become grey values: OpenCV decodes only the colours."""
    parts = [_SIGNATURE]
    for kind, body in png_chunks(data):
        if kind == b"IHDR":
            body = body[:9] + bytes([_GREY]) + body[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(parts)
