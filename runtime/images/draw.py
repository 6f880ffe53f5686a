"""Drawing for results: a label's colour, tags, and the gallery's strip."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from runtime.images.decode import Image, as_image

_STRIP_PIXELS = 1 << 20
_BACKGROUND = 32
_KEPT = 0.55  # how much of the picture shows through what is tinted
_STRIP = 5  # pictures that fill the strip's width


def annotated(
    image: Image,
    label: str | None,
    ranking: Sequence[tuple[str, float]],
    pictures: Mapping[str, Image] | None = None,
) -> Image:
    """A copy of an image with a frame in the label's colour and the ranking, best first.

    Args:
        image: (H, W, 3) uint8 BGR.
        label: The recognised label; None is unknown.
        ranking: Labels and their scores.
        pictures: A picture of each label, or of some. With it the ranking is a strip of them below the image, as wide
            as the image. The runtime keeps no pictures of what is enrolled: it is the caller's to decide whose to keep.

    Returns:
        (H, W, 3) uint8 BGR, with the strip (H + h, W, 3).
    """
    picture = drawable(image)
    color = color_of(label)
    thickness = max(2, min(picture.shape[:2]) // 100)
    cv2.rectangle(picture, (0, 0), (picture.shape[1] - 1, picture.shape[0] - 1), color, thickness)
    scale = tag_scale(picture)
    y = thickness
    if label is None:
        y += draw_tag(picture, "unknown", (thickness, y), color, scale)
    elif pictures is not None:
        draw_tag(picture, label, (thickness, y), color, scale)
    if pictures is not None:
        return np.vstack([picture, _strip(ranking, pictures, picture.shape[1])])
    for name, score in ranking:
        y += draw_tag(picture, f"{name} {score:.2f}", (thickness, y), color_of(name), scale)
    return picture


def drawable(image: Image) -> Image:
    """A copy of an image to draw on, (H, W, 3) uint8 BGR; InputError for what is no image, such as a grey one."""
    return np.array(as_image(image), order="C")  # OpenCV draws on no other layout, such as np.rot90's


def tint(picture: Image, mask: npt.NDArray[np.bool_], color: tuple[int, int, int]) -> None:
    """Mix a colour, BGR, into the pixels of ``picture``, (H, W, 3) uint8, where ``mask``, (H, W) bool, is true."""
    for rows in strips(mask.shape):
        part, inside = picture[rows], mask[rows]
        part[inside] = part[inside] * _KEPT + np.array(color) * (1 - _KEPT)


def strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of rows, so that intermediate arrays stay small beside the picture's."""
    rows = max(1, _STRIP_PIXELS // max(shape[1], 1))
    return (slice(start, start + rows) for start in range(0, shape[0], rows))


def _strip(ranking: Sequence[tuple[str, float]], pictures: Mapping[str, Image], width: int) -> Image:
    """The ranked labels' pictures side by side, (h, width, 3); a label without a picture gets an empty tile."""
    side = max(1, width // _STRIP)
    strip = np.full((side, width, 3), _BACKGROUND, np.uint8)
    for place, (name, score) in enumerate(ranking[:_STRIP]):
        tile = np.full((side, side, 3), _BACKGROUND, np.uint8)
        if name in pictures:
            ratio = side / max(pictures[name].shape[:2])
            height, across = (min(side, max(1, round(size * ratio))) for size in pictures[name].shape[:2])
            top, left = (side - height) // 2, (side - across) // 2
            shown = cv2.resize(pictures[name], (across, height), interpolation=cv2.INTER_AREA)
            tile[top : top + height, left : left + across] = shown
        draw_tag(tile, f"{name} {score:.2f}", (0, 0), color_of(name), max(0.3, side / 320))
        strip[:, place * side : (place + 1) * side] = tile
    return strip


def tag_scale(picture: Image) -> float:
    """The text scale for a picture."""
    return float(min(1.0, max(0.35, picture.shape[1] / 640)))


def color_of(label: str | None) -> tuple[int, int, int]:
    """The BGR colour that stands for a label in every picture; grey is unknown."""
    if label is None:
        return (150, 150, 150)
    number = int.from_bytes(hashlib.blake2s(label.encode()).digest()[:2], "big")
    hue = round(number * 180 * 0.618034) % 180  # consecutive numbers a golden angle apart
    pixel = cv2.cvtColor(np.array([[[hue, 200, 235]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return (int(pixel[0]), int(pixel[1]), int(pixel[2]))


def draw_tag(image: Image, text: str, origin: tuple[int, int], color: tuple[int, int, int], scale: float = 0.5) -> int:
    """Write ``text`` on a filled box whose top left corner is ``origin`` (x, y), in place; returns the box's height."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x, y = origin
    pad = _padding(scale)
    bottom = y + tag_height(text, scale)
    cv2.rectangle(image, (x, y), (x + width + 2 * pad, bottom), color, cv2.FILLED)
    # Dark or light letters, whichever the eye can read on this colour (luma of BT.601).
    luma = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2]
    ink = (0, 0, 0) if luma > 128 else (255, 255, 255)
    cv2.putText(image, text, (x + pad, y + height + pad), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
    return bottom - y


def tag_height(text: str, scale: float) -> int:
    """The height in pixels of what :func:`draw_tag` draws."""
    (_, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    return height + baseline + 2 * _padding(scale)


def _padding(scale: float) -> int:
    return max(2, round(6 * scale))
