"""Random views of training images: (H, W, 3) uint8 BGR in, the same out. Draws are the same on every platform."""

from __future__ import annotations

import math
import random

import cv2
import numpy as np

from edgevis.data.rng import below
from edgevis.training.images import resized
from runtime.images.decode import Image

_ATTEMPTS = 10


def random_horizontal_flip(image: Image, draw: random.Random) -> Image:
    """Left and right exchanged in half of the cases."""
    return np.ascontiguousarray(image[:, ::-1]) if draw.random() < 0.5 else image


def random_resized_crop(image: Image, draw: random.Random, *, height: int, width: int, least: float) -> Image:
    """A random part of between ``least`` of the area and all of it, of sides 3:4 to 4:3, resized (Szegedy et al. 2015).

    With ``least`` 1 it is the largest middle part of the output's proportions.
    """
    rows, columns = image.shape[:2]
    for _ in range(_ATTEMPTS if least < 1 else 0):
        area = rows * columns * (least + (1 - least) * draw.random())
        aspect = math.exp(math.log(4 / 3) * (2 * draw.random() - 1)) * width / height
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= columns and 0 < h <= rows:
            top, left = below(draw, rows - h + 1), below(draw, columns - w + 1)
            return resized(image[top : top + h, left : left + w], height, width)
    scale = min(rows / height, columns / width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rows - h) // 2, (columns - w) // 2
    return resized(image[top : top + h, left : left + w], height, width)


def random_crop(image: Image, draw: random.Random, *, pad: int) -> Image:
    """The image moved by up to ``pad`` pixels in both directions, black where nothing was."""
    if not pad:
        return image
    height, width = image.shape[:2]
    padded = np.zeros((height + 2 * pad, width + 2 * pad, 3), np.uint8)
    padded[pad : pad + height, pad : pad + width] = image
    top, left = below(draw, 2 * pad + 1), below(draw, 2 * pad + 1)
    return padded[top : top + height, left : left + width]


def color_jitter(image: Image, draw: random.Random, *, strength: float) -> Image:
    """Brightness, contrast and saturation each changed by a factor of 1 - strength to 1 + strength."""
    if not strength:
        return image
    factors = [1 + strength * (2 * draw.random() - 1) for _ in range(3)]
    values = image.astype(np.float32) * factors[0]
    grey = cv2.cvtColor(values, cv2.COLOR_BGR2GRAY)
    mean = float(grey.mean())
    values = mean + (values - mean) * factors[1]
    grey = (mean + (grey - mean) * factors[1])[..., np.newaxis]
    return np.clip(np.rint(grey + (values - grey) * factors[2]), 0, 255).astype(np.uint8)


def random_erasing(image: Image, draw: random.Random, *, chance: float) -> Image:
    """With that chance a rectangle of 2 to 40 % of the area filled with noise (Zhong et al., AAAI 2020)."""
    if draw.random() >= chance:
        return image
    rows, columns = image.shape[:2]
    for _ in range(_ATTEMPTS):
        area = rows * columns * (0.02 + 0.38 * draw.random())
        aspect = math.exp(math.log(1 / 0.3) * (2 * draw.random() - 1))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h < rows and 0 < w < columns:
            top, left = below(draw, rows - h + 1), below(draw, columns - w + 1)
            noise = np.random.default_rng(below(draw, 1 << 32)).integers(0, 256, (h, w, 3), np.uint8)
            image = image.copy()
            image[top : top + h, left : left + w] = noise
            break
    return image


def random_degradation(image: Image, draw: random.Random, *, strength: float) -> Image:
    """The image as a worse camera gives it: less light, blur, noise, no colour, compression, an erased part.

    Each happens with a chance that grows with ``strength``, 0 (never) to 1; the noise of Noisy Student (Xie, Luong,
    Hovy, Le, CVPR 2020), by what cameras do instead of RandAugment. Boxes stay where they are.
    """
    if not strength:
        return image

    def happens(chance: float) -> bool:
        return draw.random() < chance * strength

    if happens(0.5):  # gamma: dark or bright
        gamma = 2 ** (strength * 1.6 * (2 * draw.random() - 1))
        table = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
        image = cv2.LUT(image, table).astype(np.uint8, copy=False)
    if happens(0.4):
        image = cv2.GaussianBlur(image, (0, 0), 0.3 + 1.7 * strength * draw.random()).astype(np.uint8, copy=False)
    if happens(0.3):
        height, width = image.shape[:2]
        share = 1 - 0.6 * strength * draw.random()
        small = resized(image, max(1, round(share * height)), max(1, round(share * width)))
        image = resized(small, height, width)
    if happens(0.4):
        noise = np.random.default_rng(below(draw, 1 << 32)).standard_normal(image.shape[:2], np.float32)
        values = image + (20 * strength * draw.random()) * noise[..., np.newaxis]
        image = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if happens(0.2):
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR).astype(np.uint8, copy=False)
    if happens(0.4):
        quality = round(95 - 70 * strength * draw.random())
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if decoded is not None:
            image = decoded.astype(np.uint8, copy=False)
    return random_erasing(image, draw, chance=0.3 * strength)
