"""Average precision in NumPy, by hand and by what must not change it."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.detection.average_precision import Objects, paired_interval, precision_curves
from runtime.detection.postprocess import DetectedBoxes


def objects(*boxes: tuple[float, ...], classes: tuple[int, ...] = (), ignored: tuple[bool, ...] = ()) -> Objects:
    count = len(boxes)
    away = np.array(ignored or (False,) * count, np.bool_)
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes or (0,) * count, np.int64),
        away,
        np.zeros_like(away),
    )


def detected(*rows: tuple[float, ...], classes: tuple[int, ...] = ()) -> DetectedBoxes:
    """Rows of a score and a box."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    order = np.argsort(-table[:, 0], kind="stable")
    numbers = np.array(classes or (0,) * len(rows), np.int64)
    return DetectedBoxes(table[order, 1:], table[order, 0], numbers[order])


HERE, THERE = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 60.0, 10.0)
HALF = (0.0, 0.0, 10.0, 6.2)  # IoU 0.62 with HERE: right at three of ten thresholds


def value(there: list[Objects], found: list[DetectedBoxes], **options: object) -> float:
    classes = 1 + max(int(item.class_ids.max(initial=0)) for item in there)
    return precision_curves(there, found, classes=classes, **options).value()  # type: ignore[arg-type]


def test_by_hand() -> None:
    assert value([objects(HERE)], [detected((0.9, *HERE))]) == 1.0
    assert value([objects(HERE)], [detected((0.9, *HALF))]) == pytest.approx(0.3)
    assert value([objects(HERE)], [detected((0.9, *HALF))], thresholds=(0.5,)) == 1.0
    assert value([objects(HERE, THERE)], [detected((0.9, *HERE))]) == 0.5
    # A wrong one above both halves the precision at the first object, and leaves 2/3 at the second.
    wrong = (20.0, 20.0, 30.0, 30.0)
    rows = detected((0.9, *wrong), (0.8, *HERE), (0.7, *THERE))
    assert value([objects(HERE, THERE)], [rows]) == pytest.approx(2 / 3)  # the envelope: 2/3 from the left, too
    assert value([objects(HERE)], [detected((0.9, *wrong), (0.8, *HERE))]) == 0.5
    assert value([objects(HERE)], [detected((0.9, *HERE), (0.8, *HERE))]) == 1.0  # the second costs no precision before
    assert value([objects(HERE, THERE)], [detected((0.9, *HERE), (0.8, *HERE), (0.7, *THERE))]) == pytest.approx(5 / 6)


def test_what_is_ignored_counts_neither_way() -> None:
    there = [objects(HERE, THERE, ignored=(False, True))]
    assert value(there, [detected((0.9, *THERE), (0.8, *HERE))]) == 1.0
    assert value(there, [detected((0.9, *THERE), (0.85, *THERE), (0.8, *HERE))]) == 0.5  # only once
    crowd = Objects(*there[0][:3], np.array([False, True]))
    part = (50.0, 0.0, 52.0, 10.0)  # a fifth of the crowd, and all of it inside
    assert value([crowd], [detected((0.9, *THERE), (0.85, *part), (0.8, *HERE))]) == 1.0


def test_classes() -> None:
    there = [objects(HERE, THERE, classes=(0, 1))]
    found = [detected((0.9, *HERE), (0.8, *THERE), classes=(0, 0))]
    assert value(there, found) == 0.5
    curves = precision_curves(there, found, classes=3)
    assert curves.value(pooled=True) == 0.5
    assert curves.objects.tolist() == [[1, 1, 0]]


def test_nothing_to_find_and_nothing_found() -> None:
    assert value([objects(HERE), objects()], [detected(), detected((0.9, *HERE))]) == 0.0
    assert np.isnan(precision_curves([objects()], [detected((0.9, *HERE))], classes=1).value())
    assert np.isnan(precision_curves([], [], classes=1).value(pooled=True))
    nan = DetectedBoxes(np.full((1, 4), np.nan, np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    assert value([objects(HERE)], [nan]) == 0.0


def pictures(seed: int, noise: float) -> tuple[list[Objects], list[DetectedBoxes]]:
    random = np.random.default_rng(0)
    moved = np.random.default_rng(seed)
    there, found = [], []
    for _ in range(40):
        boxes = np.array([[x, y, x + 30, y + 30] for x, y in random.uniform(0, 300, (3, 2))], np.float32)
        scores = random.uniform(0.3, 1, 3)
        there.append(objects(*boxes.tolist()))
        rows = np.concatenate([scores[:, None], boxes + moved.normal(0, noise, boxes.shape)], axis=1)
        found.append(detected(*rows.tolist()))
    return there, found


def test_an_image_that_counts_twice_is_an_image_twice() -> None:
    there, found = pictures(1, 3.0)
    twice = precision_curves([*there, there[0]], [*found, found[0]], classes=1).value()
    weights = np.ones(len(there))
    weights[0] = 2
    assert precision_curves(there, found, classes=1).value(weights) == pytest.approx(twice, abs=1e-12)


def test_the_paired_interval_covers_the_difference_and_is_narrow_for_equals() -> None:
    there, found = pictures(1, 2.0)
    right = precision_curves(there, found, classes=1)
    assert paired_interval(right, right) == (0.0, 0.0)
    worse = precision_curves(there, pictures(2, 4.0)[1], classes=1)
    low, high = paired_interval(right, worse)
    assert 0 < low < right.value() - worse.value() < high
