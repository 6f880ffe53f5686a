"""The shared part of the tasks that label pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from runtime.bundle.spec import Preprocess
from runtime.common.arrays import Array
from runtime.errors import SchemaError
from runtime.images.decode import Image
from runtime.results import Segmentation

STRIP_VALUES = 1 << 23
"""How many float32 values of maps at an image's size stand in memory at once: 32 MiB."""


def stretched(preprocess: Preprocess) -> None:
    """Refuse a model whose map does not cover the image: only ``stretch`` shows the network all of it, and only it."""
    if preprocess.fit != "stretch":
        raise SchemaError(f"preprocess: fit is {preprocess.fit!r}; segmentation maps the whole image: use 'stretch'")


def probability_of(margin: Array) -> npt.NDArray[np.float32]:
    """The logistic function of (H, W) float32, through OpenCV: three times as fast as NumPy's exp."""
    odds = cv2.exp(-np.ascontiguousarray(margin, np.float32))
    return np.asarray(np.float32(1.0) / (odds + np.float32(1.0)), np.float32)


def size_of(image: Image) -> tuple[int, int]:
    """(H, W)."""
    return image.shape[0], image.shape[1]


def strips(size: tuple[int, int], maps: int) -> list[slice]:
    """Rows of an (H, W) image, in order, so few that ``maps`` maps of them are :data:`STRIP_VALUES` values or less."""
    height, width = size
    rows = max(1, STRIP_VALUES // (width * maps))
    return [slice(start, min(start + rows, height)) for start in range(0, height, rows)]


def segmentation_of(
    size: tuple[int, int],
    labels: tuple[str, ...],
    parts: Iterable[tuple[slice, Sequence[npt.NDArray[np.bool_]], Sequence[npt.NDArray[np.float32]]]],
) -> Segmentation:
    """One result, put together strip by strip: only its own arrays are as large as the image.

    Args:
        size: The image's (H, W).
        labels: The labels of the masks and probabilities.
        parts: For each strip its rows, and each label's (rows, W) mask and probability. Where masks overlap, the more
            probable label wins.
    """
    mask = np.empty(size, np.bool_)
    probability = np.empty(size, np.float32)
    label_map = np.empty(size, np.int16)
    for rows, masks, probabilities in parts:
        best = probability[rows]
        best[...] = probabilities[0]
        label_map[rows] = np.where(masks[0], np.int16(0), np.int16(-1))
        claimed = np.where(masks[0], probabilities[0], np.float32(-1.0))
        for index in range(1, len(masks)):
            np.maximum(best, probabilities[index], out=best)
            wins = masks[index] & (probabilities[index] > claimed)
            label_map[rows][wins] = index
            np.copyto(claimed, probabilities[index], where=wins)
        np.greater_equal(label_map[rows], 0, out=mask[rows])
    return Segmentation(mask, probability, labels, label_map)
