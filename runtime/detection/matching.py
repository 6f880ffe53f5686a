"""Greedy matching of two lists of detections of one image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.detection.boxes import pairwise_iou
from runtime.detection.postprocess import DetectedBoxes


def matched_pairs(
    first: DetectedBoxes, second: DetectedBoxes, *, iou: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The indices of the detections of two lists that are the same: of one class, and with an IoU of at least ``iou``.

    Each of ``first``, the best first, takes the one of ``second`` with the highest IoU that is still free.
    """
    overlaps = pairwise_iou(first.boxes, second.boxes)
    overlaps[first.class_ids[:, None] != second.class_ids[None]] = -1.0
    pairs = []
    for index in range(len(overlaps)):
        if not overlaps.shape[1]:
            break
        other = int(overlaps[index].argmax())
        if overlaps[index, other] >= iou:
            pairs.append((index, other))
            overlaps[:, other] = -1.0
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
