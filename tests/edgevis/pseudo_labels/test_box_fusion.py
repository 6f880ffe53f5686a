"""Weighted boxes fusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevis.pseudo_labels import ViewDetections, weighted_box_fusion
from edgevis.pseudo_labels.box_fusion import box_iou
from runtime.errors import InputError

WHOLE = (0.0, 0.0, 100.0, 100.0)


def view(
    rows: Any,
    window: tuple[float, float, float, float] = WHOLE,
    weight: float = 1.0,
    class_ids: list[int] | None = None,
) -> ViewDetections:
    rows = np.array(rows, np.float64).reshape(-1, 5)
    ids = np.zeros(len(rows), np.int64) if class_ids is None else np.array(class_ids, np.int64)
    return ViewDetections(rows[:, :4], rows[:, 4], ids, window, weight)


def test_box_is_the_score_weighted_mean_and_score_the_mean() -> None:
    fused = weighted_box_fusion([view([[10, 10, 50, 50, 0.9]]), view([[14, 10, 54, 50, 0.3]])])
    np.testing.assert_allclose(fused.boxes_xyxy, [[11, 10, 51, 50]])
    np.testing.assert_allclose(fused.scores, [0.6])
    np.testing.assert_allclose(fused.votes, [1.0])


def test_box_of_one_of_two_models_has_half_its_score() -> None:
    fused = weighted_box_fusion([view([[10, 10, 50, 50, 0.8]]), view([])])
    np.testing.assert_allclose(fused.scores, [0.4])
    np.testing.assert_allclose(fused.votes, [0.5])


def test_a_models_weight_counts_in_box_and_score() -> None:
    fused = weighted_box_fusion([view([[10, 10, 50, 50, 0.5]], weight=3.0), view([[14, 10, 54, 50, 0.5]])])
    np.testing.assert_allclose(fused.boxes_xyxy, [[11, 10, 51, 50]])
    lone = weighted_box_fusion([view([[10, 10, 50, 50, 0.5]], weight=3.0), view([])])
    np.testing.assert_allclose(lone.scores, [0.375])


def test_tile_that_does_not_show_a_box_does_not_lower_its_score() -> None:
    tile = (0.0, 0.0, 60.0, 60.0)
    shown = weighted_box_fusion([view([[70, 70, 90, 90, 0.8]]), view([], window=tile)])
    missed = weighted_box_fusion([view([[10, 10, 50, 50, 0.8]]), view([], window=tile)])
    np.testing.assert_allclose(shown.scores, [0.8])
    np.testing.assert_allclose(missed.scores, [0.4])


def test_duplicates_of_one_view_are_dropped() -> None:
    twice = view([[10, 10, 50, 50, 0.8], [11, 10, 51, 50, 0.7]])
    fused = weighted_box_fusion([twice, view([])])
    np.testing.assert_allclose(fused.boxes_xyxy, [[10, 10, 50, 50]])
    np.testing.assert_allclose(fused.scores, [0.4])


def test_classes_are_fused_apart_and_sorted_by_score() -> None:
    fused = weighted_box_fusion([view([[10, 10, 50, 50, 0.5], [10, 10, 50, 50, 0.7]], class_ids=[0, 4])])
    np.testing.assert_array_equal(fused.class_ids, [4, 0])
    np.testing.assert_allclose(fused.scores, [0.7, 0.5])


def test_nothing_found_is_an_empty_result() -> None:
    fused = weighted_box_fusion([view([]), view([])])
    assert fused.boxes_xyxy.shape == (0, 4)
    assert fused.class_ids.dtype == np.int64


@pytest.mark.parametrize("iou", [0.0, 1.0, float("nan")])
def test_iou_outside_of_its_range_is_refused(iou: float) -> None:
    with pytest.raises(InputError, match="above 0 and below 1"):
        weighted_box_fusion([view([])], iou=iou)


def test_no_view_and_no_weight_are_refused() -> None:
    with pytest.raises(InputError, match="at least one view"):
        weighted_box_fusion([])
    with pytest.raises(InputError, match="weight above 0"):
        weighted_box_fusion([view([], weight=0.0)])


boxes = st.lists(
    st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 40)] * 2, st.floats(0.05, 1.0)).map(
        lambda row: [row[0], row[1], row[0] + row[2], row[1] + row[3], row[4]]
    ),
    max_size=6,
)


@given(st.lists(boxes, min_size=1, max_size=4))
def test_fused_boxes_lie_within_those_given_and_do_not_gain_certainty(rows: Any) -> None:
    fused = weighted_box_fusion([view(part) for part in rows])
    given_rows = np.array([row for part in rows for row in part], np.float64).reshape(-1, 5)
    assert len(fused.scores) <= len(given_rows)
    assert (np.diff(fused.scores) <= 0).all()
    assert ((fused.votes > 0) & (fused.votes <= 1)).all()
    if len(given_rows):
        assert fused.scores.max() <= given_rows[:, 4].max() + 1e-9
        assert (fused.boxes_xyxy.min(axis=0) >= given_rows[:, :4].min(axis=0) - 1e-9).all()
        assert (fused.boxes_xyxy.max(axis=0) <= given_rows[:, :4].max(axis=0) + 1e-9).all()


def test_iou_of_equal_apart_and_half_covered_boxes() -> None:
    first = np.array([[0, 0, 10, 10]], np.float64)
    other = np.array([[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 5], [5, 5, 5, 5]], np.float64)
    np.testing.assert_allclose(box_iou(first, other), [[1, 0, 0.5, 0]])
