"""Views of a person as cameras might show them: other clothes, light, surroundings, boxes and resolutions.

A view has no label: its target is the teacher network's output. So colours may change freely, and
persons may be put together from two.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edgevis.data.person_cutouts import BACKGROUND, BODY, PersonCutout

HEIGHT, WIDTH = 256, 128

Image = NDArray[np.uint8]


def camera_view(
    persons: Sequence[PersonCutout], index: int, rng: np.random.Generator, *, same_clothes: bool = False
) -> Image:
    """One random view of ``persons[index]``, (256, 128, 3) uint8 BGR; others lend surroundings and halves.

    With ``same_clothes`` it stays recognisable as that person: no other colours, no halves of others.
    """
    image = _dressed(persons, index, rng, recolour=not same_clothes)
    if not same_clothes and rng.random() < 0.2:
        image = _joined(image, _dressed(persons, int(rng.integers(len(persons))), rng, recolour=True), rng)
    image = _lit(image, rng)
    image = _degraded(image, rng)
    if rng.random() < 0.25:
        _erase(image, rng)
    return image


def harder_view(view: Image, rng: np.random.Generator) -> Image:
    """A view, (256, 128, 3) uint8 BGR, made harder: moved, mirrored, in other light, blurred, partly hidden."""
    scale = rng.uniform(0.93, 1.05)
    shift = rng.uniform(-0.04, 0.04, 2) + (1 - scale) / 2
    matrix = np.array([[scale, 0.0, shift[0] * WIDTH], [0.0, scale, shift[1] * HEIGHT]])
    if rng.random() < 0.5:
        matrix[0] = -scale, 0.0, WIDTH - 1 - matrix[0, 2]
    edge = cv2.BORDER_REPLICATE
    image = np.asarray(cv2.warpAffine(view, matrix, (WIDTH, HEIGHT), borderMode=edge), np.uint8)
    image = _lit(image, rng, strength=0.6)
    if rng.random() < 0.3:
        height = int(rng.integers(56, 140))
        small = cv2.resize(image, (height // 2, height), interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR), np.uint8)
    if rng.random() < 0.25:
        image = image.copy()
        _erase(image, rng)
    return image


def _dressed(persons: Sequence[PersonCutout], index: int, rng: np.random.Generator, *, recolour: bool) -> Image:
    """The person's box, with other colours and before other surroundings at times."""
    person = persons[index]
    image, parts = _cut(person, rng)
    if recolour and rng.random() < 0.55:
        image = _recoloured(image, parts, rng)
    if rng.random() < 0.4:
        lender = persons[int(rng.integers(len(persons)))]
        cover = cv2.blur(np.where(parts == BACKGROUND, np.float32(0), np.float32(1)), (3, 3))[..., None]
        image = (cover * image + (1 - cover) * _surroundings(lender, rng)).astype(np.uint8)
    return image


def _cut(person: PersonCutout, rng: np.random.Generator) -> tuple[Image, Image]:
    """The image and the parts of a box like a detector's: loose, tight, cut off, or around the upper body only."""
    x0, y0, x1, y1 = (float(value) for value in person.box)
    width, height = x1 - x0, y1 - y0
    kind = rng.random()
    if kind < 0.15:  # close to the camera: the upper body
        y1 = y0 + height * rng.uniform(0.35, 0.65)
    elif kind < 0.35:  # one side is cut off or hidden
        cut = rng.uniform(0.1, 0.4)
        side = int(rng.integers(4))
        y0, y1 = y0 + height * cut * 0.6 * (side == 0), y1 - height * cut * (side == 1)
        x0, x1 = x0 + width * cut * (side == 2), x1 - width * cut * (side == 3)
    loose = rng.uniform(-0.03, 0.15)
    x0, x1 = x0 - width * (loose + rng.uniform(-0.05, 0.1)), x1 + width * (loose + rng.uniform(-0.05, 0.1))
    y0, y1 = (
        y0 - height * (loose * 0.4 + rng.uniform(-0.02, 0.03)),
        y1 + height * (loose * 0.4 + rng.uniform(-0.02, 0.03)),
    )
    flip = rng.random() < 0.5
    tilt = float(np.tan(np.radians(rng.normal(0, 2.5))))
    step_x, step_y = (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT
    start_x = (x1 - step_x / 2 if flip else x0 + step_x / 2) - 0.5
    # From pixel of the view to pixel of the image; the tilt is a shear, near enough to a small rotation.
    matrix = np.array(
        [
            [-step_x if flip else step_x, tilt * step_y, start_x - tilt * (y1 - y0) / 2],
            [0.0, step_y, y0 + step_y / 2 - 0.5],
        ]
    )
    inverse = cv2.WARP_INVERSE_MAP
    edge = cv2.BORDER_REPLICATE
    image = cv2.warpAffine(person.image, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | inverse, borderMode=edge)
    parts = cv2.warpAffine(person.parts, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_NEAREST | inverse, borderMode=edge)
    return np.asarray(image, np.uint8), np.asarray(parts, np.uint8)


def _recoloured(image: Image, parts: Image, rng: np.random.Generator) -> Image:
    """Garments with another hue, saturation and brightness; the folds stay."""
    hsv = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), np.uint8)
    levels = np.arange(256)
    for part in np.flatnonzero(np.bincount(parts.ravel(), minlength=256)):
        if part in (BACKGROUND, BODY) or rng.random() < 0.35:
            continue
        where = parts == part
        pixels = hsv[where]
        saturation = levels * rng.uniform(0.2, 1.8) + rng.uniform(-20, 70) * (rng.random() < 0.5)
        value = levels * rng.uniform(0.35, 1.5) + rng.uniform(-30, 90) * (rng.random() < 0.5)
        pixels[:, 0] = (pixels[:, 0] + int(rng.integers(180))) % 180
        pixels[:, 1] = saturation.clip(0, 255).astype(np.uint8)[pixels[:, 1]]
        pixels[:, 2] = value.clip(0, 255).astype(np.uint8)[pixels[:, 2]]
        hsv[where] = pixels
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR), np.uint8)


def _surroundings(person: PersonCutout, rng: np.random.Generator) -> Image:
    """The surroundings of the person, or a plain gradient if there are none."""
    x0, _, x1, _ = person.box
    height, width = person.parts.shape
    left, right = person.image[:, :x0], person.image[:, x1:]
    strip = left if x0 >= width - x1 else right
    if strip.shape[1] < 12 or rng.random() < 0.15:
        ends = rng.integers(0, 256, (2, 1, 3)).astype(np.uint8)
        return np.asarray(cv2.resize(ends, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR), np.uint8)
    top = int(rng.integers(0, height // 3 + 1))
    bottom = int(rng.integers(2 * height // 3, height)) + 1
    strip = np.asarray(cv2.resize(strip[top:bottom], (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR), np.uint8)
    return strip[:, ::-1] if rng.random() < 0.5 else strip


def _joined(image: Image, other: Image, rng: np.random.Generator) -> Image:
    """The upper half of one person on the lower half of another, or one before the other."""
    image = image.copy()
    if rng.random() < 0.6:
        waist = int(rng.integers(HEIGHT // 4, 3 * HEIGHT // 4))
        image[waist:] = other[waist:]
    else:
        edge = int(rng.integers(WIDTH // 8, WIDTH // 2))
        if rng.random() < 0.5:
            image[:, :edge] = other[:, -edge:]
        else:
            image[:, -edge:] = other[:, :edge]
    return image


def _lit(image: Image, rng: np.random.Generator, *, strength: float = 1.0) -> Image:
    """Exposure, contrast, colour of the light, saturation; ``strength`` is 0..1."""
    if rng.random() < 0.8:
        levels = np.linspace(0.0, 1.0, 256)[:, None] ** np.exp(strength * rng.normal(0, 0.3))
        gains = np.exp(strength * (rng.normal(0, 0.2) + rng.normal(0, 0.06, 3)))
        table = (255 * levels * gains + strength * rng.normal(0, 14)).clip(0, 255).astype(np.uint8)
        image = np.asarray(cv2.LUT(image, table[None]), np.uint8)
    if rng.random() < 0.5:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        colour = 1 - strength + strength * float(rng.uniform(0.2, 1.5))
        image = np.asarray(cv2.addWeighted(image, colour, grey, 1 - colour, 0), np.uint8)
    return image


def _degraded(image: Image, rng: np.random.Generator) -> Image:
    """Blur, few pixels, noise, JPEG; then back to size by bilinear stretch, as the runtime does it."""
    if rng.random() < 0.2:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 2.0))), np.uint8)
    if rng.random() < 0.12:
        length = int(rng.integers(3, 10))
        image = np.asarray(cv2.blur(image, (length, 1) if rng.random() < 0.7 else (1, length)), np.uint8)
    if rng.random() < 0.65:
        height = int(np.exp(rng.uniform(np.log(48), np.log(230))))
        width = max(12, int(height * rng.uniform(0.3, 0.5)))
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    if rng.random() < 0.4:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1, 10))
        image = (image + noise).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        _, coded = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))))
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR), np.uint8).copy()


def _erase(image: Image, rng: np.random.Generator) -> None:
    """A rectangle of one colour or of noise, in place."""
    height, width = int(rng.integers(HEIGHT // 10, HEIGHT // 3)), int(rng.integers(WIDTH // 6, WIDTH // 2))
    top, left = int(rng.integers(HEIGHT - height)), int(rng.integers(WIDTH - width))
    shape = (height, width, 3) if rng.random() < 0.5 else (1, 1, 3)
    image[top : top + height, left : left + width] = rng.integers(0, 256, shape, np.uint8)
