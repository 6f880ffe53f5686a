"""Overlap, the choice of the best pairs, and suppression, each against a definition in plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.detection.boxes import areas_of, best_pairs, classwise_nms, pairwise_iou

from bundles import Array


def iou_of(first: list[float], second: list[float]) -> float:
    """The definition, of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    either = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared
    return shared / either


def suppressed(boxes: Array, class_ids: Array, iou: float, limit: int) -> list[int]:
    """The definition of greedy suppression: a box stays unless one before it that stays overlaps it."""
    kept: list[int] = []
    for index, box in enumerate(boxes.astype(float).tolist()):
        rivals = [place for place in kept if class_ids[place] == class_ids[index]]
        if all(iou_of(boxes[place].astype(float).tolist(), box) <= iou for place in rivals):
            kept.append(index)
    return kept[:limit]


# Quarters are exact in binary, so that an IoU on the threshold is on it in both computations.
sides = st.integers(1, 40).map(lambda side: side / 4)
corners = st.integers(0, 60).map(lambda corner: corner / 4)
box_lists = st.lists(
    st.tuples(corners, corners, sides, sides, st.integers(0, 2)), min_size=0, max_size=40, unique=False
)


@given(rows=box_lists, iou=st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.65, 1.0]), limit=st.integers(1, 40))
@settings(max_examples=200)
def test_suppression_is_the_definition(rows: list[Any], iou: float, limit: int) -> None:
    boxes = np.array([(x, y, x + width, y + height) for x, y, width, height, _ in rows], np.float32).reshape(-1, 4)
    class_ids = np.array([row[4] for row in rows], np.int64)
    assert classwise_nms(boxes, class_ids, iou=iou, limit=limit).tolist() == suppressed(boxes, class_ids, iou, limit)


def test_suppression_of_many_boxes_is_the_definition() -> None:
    random = np.random.default_rng(0)
    start = random.uniform(0, 500, (1000, 2))
    boxes = np.concatenate([start, start + random.uniform(5, 200, (1000, 2))], axis=1).astype(np.float32)
    class_ids = random.integers(0, 3, 1000)
    for limit in (1, 100, 1000):
        actual = classwise_nms(boxes, class_ids, iou=0.5, limit=limit).tolist()
        assert actual == suppressed(boxes, class_ids, 0.5, limit)


def test_an_overlap_on_the_threshold_stays() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 2, 4, 6], [0, 0, 4, 4]], np.float32)  # IoU of the first two: 8 / 24
    assert classwise_nms(boxes, np.zeros(3, int), iou=1 / 3, limit=9).tolist() == [0, 1]
    assert classwise_nms(boxes, np.zeros(3, int), iou=0.333, limit=9).tolist() == [0]
    assert classwise_nms(boxes, np.array([0, 1, 1]), iou=0.333, limit=9).tolist() == [0, 1]


def test_areas_and_overlaps() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 2, 4, 6], [9, 9, 9, 12], [5, 5, 3, 9]], np.float32)
    assert areas_of(boxes).tolist() == [16, 16, 0, 0]
    overlaps = pairwise_iou(boxes, boxes)
    assert overlaps[0, 1] == overlaps[1, 0] == 8 / 24
    assert overlaps[0, 0] == 1
    assert overlaps[2].tolist() == overlaps[3].tolist() == [0, 0, 0, 0]
    assert pairwise_iou(boxes[:0], boxes).shape == (0, 4)


@pytest.mark.parametrize("limit", [1, 7, 100, 2000])
def test_best_pairs_are_sorted_and_ties_keep_their_order(limit: int) -> None:
    """Scores with many ties, as INT8 makes them: the order never depends on the sorting algorithm."""
    scores = np.random.default_rng(limit).integers(0, 12, (300, 4)).astype(np.float32) / 12
    flat = scores.reshape(-1)
    expected = [index for index in range(len(flat)) if flat[index] >= np.float32(0.5)]
    expected.sort(key=lambda index: (-flat[index], index))
    box, label = best_pairs(scores, threshold=0.5, limit=limit)
    assert (box * 4 + label).tolist() == expected[:limit]


def test_a_score_on_the_threshold_counts_and_nan_never() -> None:
    scores = np.array([[0.3, np.nan], [0.29999998, 1.0], [np.nan, np.inf]], np.float32)
    box, label = best_pairs(scores, threshold=0.3, limit=9)
    assert list(zip(box.tolist(), label.tolist(), strict=True)) == [(2, 1), (1, 1), (0, 0)]
    assert [part.tolist() for part in best_pairs(scores[:0], threshold=0.3, limit=9)] == [[], []]
