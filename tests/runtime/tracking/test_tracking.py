"""Assignment, the Kalman filter, ByteTrack, and which views are used."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.tracking import trackers
from runtime.tracking.assignment import assign
from runtime.tracking.kalman import BoxFilter
from runtime.tracking.trackers import TrackedBox
from runtime.tracking.views import GOOD, POOR, ViewSize, hidden_shares, view_weights


def total(costs: np.ndarray, pairs: list[tuple[int, int]], max_cost: float) -> float:
    """The cost of an assignment in which an unpaired row or column of the shorter side costs ``max_cost``."""
    return sum(costs[pair] for pair in pairs) + max_cost * (min(costs.shape) - len(pairs))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31), st.sampled_from([0.3, 0.7, 2.0]))
def test_the_assignment_is_the_best_of_all(rows: int, columns: int, seed: int, max_cost: float) -> None:
    costs = np.random.default_rng(seed).random((rows, columns))
    pairs = assign(costs, max_cost)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert all(costs[pair] < max_cost for pair in pairs)
    wide = costs if rows <= columns else costs.T
    best = min(
        sum(min(wide[row, column], max_cost) for row, column in enumerate(chosen))
        for chosen in permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert total(costs, pairs, max_cost) == pytest.approx(best)


def test_nothing_is_assigned_where_nothing_is_or_may_be() -> None:
    assert assign(np.empty((0, 3)), 1.0) == []
    assert assign(np.full((2, 2), np.inf), 1.0) == []


def test_the_filter_is_the_full_kalman_filter() -> None:
    """The same as with 8 x 8 matrices, by the textbook's equations."""
    filter_ = BoxFilter()
    boxes = np.array([[10.0, 20.0, 50.0, 140.0], [300.0, 100.0, 360.0, 260.0]])
    filter_.add(boxes)
    height = boxes[:, 3] - boxes[:, 1]
    means, covariances = [], []
    for box, h in zip(boxes, height, strict=True):
        centre = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, (box[2] - box[0]) / h, h]
        means.append(np.array([*centre, 0, 0, 0, 0]))
        spread = [h / 10, h / 10, 1e-2, h / 10, h / 16, h / 16, 1e-5, h / 16]
        covariances.append(np.diag(np.square(spread)))
    measured = boxes + np.array([[6.0, 2.0, 8.0, 4.0], [-5.0, 1.0, -3.0, 2.0]])
    filter_.predict(3)
    filter_.correct(np.array([0, 1]), measured)
    motion = np.eye(8) + 3 * np.eye(8, k=4)
    observe = np.eye(4, 8)
    for place, (mean, covariance, h) in enumerate(zip(means, covariances, height, strict=True)):
        noise = 3 * np.square([h / 20, h / 20, 1e-2, h / 20, h / 160, h / 160, 1e-5, h / 160])
        mean = motion @ mean
        covariance = motion @ covariance @ motion.T + np.diag(noise)
        box = measured[place]
        sides = box[2:] - box[:2]
        value = np.array([*(box[:2] + box[2:]) / 2, sides[0] / sides[1], sides[1]])
        uncertainty = observe @ covariance @ observe.T + np.diag(np.square([h / 20, h / 20, 1e-1, h / 20]))
        gain = covariance @ observe.T @ np.linalg.inv(uncertainty)
        mean = mean + gain @ (value - observe @ mean)
        np.testing.assert_allclose(filter_.position[place], mean[:4], rtol=1e-9)
        np.testing.assert_allclose(filter_.velocity[place], mean[4:], rtol=1e-9, atol=1e-12)


class Scene:
    """Feeds a tracker with boxes of 40 x 100 pixels."""

    def __init__(self, **settings: float) -> None:
        self.tracker = trackers.load("bytetrack").open_tracker(settings)
        self.index = -1

    def see(
        self, *centres: tuple[float, float], score: float = 0.9, classes: list[int] | None = None, skip: int = 0
    ) -> list[TrackedBox]:
        self.index += 1 + skip
        boxes = np.array([[x - 20, y - 50, x + 20, y + 50] for x, y in centres], np.float32).reshape(-1, 4)
        scores = np.full(len(boxes), score, np.float32)
        class_ids = np.array(classes or [0] * len(boxes), np.int64)
        seen = self.tracker.update(boxes, scores, class_ids, index=self.index, time_s=self.index / 10)
        return [item for item in seen if item.detection is not None and item.confirmed]


def test_two_that_cross_keep_their_tracks() -> None:
    scene = Scene()
    first = {item.detection: item.key for item in scene.see((100, 100), (300, 130))}
    for step in range(1, 21):
        seen = scene.see((100 + 10 * step, 100), (300 - 10 * step, 130))
    assert {item.detection: item.key for item in seen} == first


def test_a_gap_is_predicted_over() -> None:
    scene = Scene()
    for step in range(6):
        (key,) = [item.key for item in scene.see((100 + 12 * step, 100))]
    (after,) = scene.see((100 + 12 * 12, 100), skip=6)  # 84 pixels on: no overlap with where it was
    assert after.key == key


def test_detections_of_low_score_keep_a_track_and_begin_none() -> None:
    scene = Scene()
    (first,) = scene.see((100, 100))
    assert [item.key for item in scene.see((104, 100), score=0.2)] == [first.key]
    scene = Scene()
    for _ in range(4):
        assert scene.see((100, 100), score=0.3) == []


def test_a_track_is_confirmed_by_its_second_detection_and_ends_after_its_time() -> None:
    scene = Scene(lost_s=0.5)
    assert scene.see() == []
    assert scene.see((100, 100)) == []
    (item,) = scene.see((102, 100))
    for _ in range(5):
        assert scene.see() == []
    assert [again.key for again in scene.see((110, 100))] == [item.key]
    for _ in range(7):
        scene.see()
    assert scene.see((110, 100)) == []
    (other,) = scene.see((110, 100))
    assert other.key != item.key


def test_only_detections_of_one_class_make_a_track() -> None:
    scene = Scene()
    (person,) = scene.see((100, 100), classes=[0])
    assert scene.see((100, 100), classes=[1]) == []
    (bag,) = scene.see((100, 100), classes=[1])
    assert bag.key != person.key
    assert bag.class_id == 1


def test_predicted_boxes_move_on() -> None:
    scene = Scene()
    for step in range(8):
        scene.see((100 + 10 * step, 100))
    (item,) = scene.tracker.predict(index=scene.index + 2, time_s=(scene.index + 2) / 10)
    assert item.detection is None
    np.testing.assert_allclose(item.box_xyxy[::2].mean(), 190, atol=4)


@pytest.mark.parametrize("settings", [{"lost": 1.0}, {"lost_s": -1.0}, {"min_iou": True}])
def test_other_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="allowed"):
        trackers.load("bytetrack").open_tracker(settings)


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(InputError, match="no tracker 'sort'; known: bytetrack"):
        trackers.load("sort")


def test_views_that_are_cut_off_hidden_or_tiny_count_less_or_nothing() -> None:
    boxes = np.array(
        [
            [100, 100, 140, 200],  # whole
            [0, 100, 40, 200],  # at the left edge
            [300, 380, 340, 480],  # at the lower edge
            [110, 60, 150, 180],  # behind the first one
            [400, 100, 405, 110],  # tiny
        ],
        np.float64,
    )
    assert view_weights(boxes, (480, 640)).tolist() == [GOOD, POOR, POOR, 0.0, 0.0]
    assert hidden_shares(boxes)[3] == pytest.approx(30 * 80 / (40 * 120))


def test_a_view_differs_by_scale_and_by_shape() -> None:
    size = ViewSize(40, 100)
    assert not ViewSize(44, 110).differs(size)
    assert ViewSize(60, 150).differs(size)
    assert ViewSize(26, 65).differs(size)
    assert ViewSize(55, 100).differs(size)
