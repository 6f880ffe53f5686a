"""Overlap of predicted and true masks: intersection over union, for each class and for foreground and background.

torchmetrics' ``mean_iou`` is another measure: it averages over images, where the few-shot segmentation benchmarks
divide sums over all episodes of a class; and it knows no pixels to ignore.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgevis.metrics.jackknife import mean_of_ratios
from runtime.errors import InputError

__all__ = ["SegmentationScore", "intersection_and_union"]


def intersection_and_union(
    prediction: ArrayLike, target: ArrayLike, ignore: ArrayLike | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of pixels in the intersection and the union, of background and of foreground.

    Args:
        prediction, target: (H, W) bool, or integers 0 and 1: the foreground.
        ignore: (H, W) bool: pixels that are not counted.

    Returns:
        Intersection and union, each (2,) int64: background, foreground.

    Raises:
        InputError: Another shape or dtype, or a value besides 0 and 1.
    """
    predicted, true = _binary("prediction", prediction), _binary("target", target)
    counted = np.ones_like(true) if ignore is None else ~_binary("ignore", ignore)
    if not predicted.shape == true.shape == counted.shape:
        raise InputError(
            f"prediction is {predicted.shape}, target {true.shape}, ignore {counted.shape}; they must be equally large"
        )
    pairs = ((~predicted & counted, ~true & counted), (predicted & counted, true & counted))
    intersection = np.array([np.count_nonzero(one & other) for one, other in pairs], np.int64)
    union = np.array([np.count_nonzero(one | other) for one, other in pairs], np.int64)
    return intersection, union


class SegmentationScore:
    """Sums over the episodes of one fold (or the images of a data set), and the scores computed from them."""

    def __init__(self, class_ids: Sequence[int]) -> None:
        """A score with nothing added yet.

        Args:
            class_ids: The classes of the fold.

        Raises:
            InputError: There are none, or one is named twice.
        """
        if not len(class_ids) or len(set(class_ids)) != len(class_ids):
            raise InputError(f"class_ids are {list(class_ids)}; allowed: one or more, each once")
        self._class_ids = tuple(int(class_id) for class_id in class_ids)
        self._added: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, prediction: ArrayLike, target: ArrayLike, class_id: int, ignore: ArrayLike | None = None) -> None:
        """Count one mask of one class; arguments as of :func:`intersection_and_union`.

        Raises:
            InputError: The class is not of this fold, or a mask is wrong; nothing is counted then.
        """
        if class_id not in self._class_ids:
            raise InputError(
                f"there is no class {class_id} in this score; allowed: {', '.join(map(str, self._class_ids))}"
            )
        self._added.append((self._class_ids.index(class_id), *intersection_and_union(prediction, target, ignore)))

    @property
    def class_iou(self) -> dict[int, float]:
        """Foreground IoU of each class, from 0 to 1: summed intersections / summed unions.

        Only of classes that were added and have a pixel, predicted or true, that counts: of others nothing is known.
        """
        intersection, union = (counts.sum(0) for counts in self._by_class())
        return {
            class_id: int(both) / int(either)
            for class_id, both, either in zip(self._class_ids, intersection, union, strict=True)
            if either
        }

    @property
    def mean_iou(self) -> float:
        """Mean IoU (mIoU) from 0 to 1: the mean over the classes of :attr:`class_iou`.

        Raises:
            InputError: There is none.
        """
        return mean_of_ratios(*self._by_class())[0]

    @property
    def fb_iou(self) -> float:
        """FB-IoU from 0 to 1: the mean of background and foreground IoU over all that was added, whatever its class.

        Raises:
            InputError: Nothing was added, or no pixel counts.
        """
        return mean_of_ratios(*self._by_side())[0]

    def samples(self) -> dict[str, NDArray[np.float64]]:
        """The pseudo-values (see ``edgevis.metrics.jackknife``) of ``mIoU`` and ``FB-IoU``, (E,), of what was added.

        Raises:
            InputError: Nothing was added, or no pixel counts.
        """
        return {"mIoU": mean_of_ratios(*self._by_class())[1], "FB-IoU": mean_of_ratios(*self._by_side())[1]}

    def _by_class(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Foreground intersections and unions, (E, classes) each, 0 but for an episode's own class."""
        tables = np.zeros((2, len(self._added), len(self._class_ids)), np.int64)
        for row, (place, *counts) in enumerate(self._added):
            tables[:, row, place] = [count[1] for count in counts]
        return tables[0], tables[1]

    def _by_side(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Intersections and unions of background and foreground, (E, 2) each."""
        table = np.array([(one, other) for _, one, other in self._added], np.int64).reshape(-1, 2, 2)
        return table[:, 0], table[:, 1]


def _binary(name: str, mask: ArrayLike) -> NDArray[np.bool_]:
    values = np.asarray(mask)
    if values.ndim != 2 or values.dtype.kind not in "biu" or 0 in values.shape:
        raise InputError(f"{name} has shape {values.shape} and dtype {values.dtype}; allowed: (H, W), bool or 0 and 1")
    if values.dtype != np.bool_ and (values.min() < 0 or values.max() > 1):
        raise InputError(f"{name} holds values from {values.min()} to {values.max()}; allowed: 0 and 1")
    return values.astype(np.bool_, copy=False)
