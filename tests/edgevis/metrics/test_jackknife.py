"""Pseudo-values against the jackknife written out, and the interval of a difference against trials."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgevis.metrics import SegmentationScore, difference, grouped_mean, mean_of_ratios, reid_queries, reid_ranking
from edgevis.metrics.interval import half_width
from runtime.errors import InputError


def test_pseudo_values_are_those_of_leaving_each_unit_out() -> None:
    draw = np.random.default_rng(1)
    above = draw.integers(0, 9, (12, 3))
    below = above + draw.integers(1, 9, (12, 3))
    value, samples = mean_of_ratios(above, below)
    assert value == pytest.approx((above.sum(0) / below.sum(0)).mean(), rel=1e-12)
    for unit in range(12):
        others = np.delete(above, unit, 0).sum(0) / np.delete(below, unit, 0).sum(0)
        assert samples[unit] == pytest.approx(12 * value - 11 * others.mean(), rel=1e-9)


def test_of_a_mean_they_are_the_values() -> None:
    values = np.random.default_rng(2).random(9)
    value, samples = mean_of_ratios(values[:, None], np.ones((9, 1)))
    assert value == pytest.approx(values.mean())
    np.testing.assert_allclose(samples, values, rtol=1e-12)


def test_an_empty_column_is_no_part_of_the_mean() -> None:
    value, samples = mean_of_ratios([[1.0, 0.0]], [[2.0, 0.0]])
    assert value == 0.5
    assert samples.tolist() == [0.5]
    # The first column is the first unit's alone: without it the mean is 1/4.
    value, samples = mean_of_ratios([[2, 0, 0], [0, 1, 0]], [[2, 0, 0], [0, 4, 0]])
    assert value == (1 + 1 / 4) / 2
    assert samples.tolist() == [2 * value - 1 / 4, 2 * value - 1]
    value, samples = mean_of_ratios([[1.0], [0.0]], [[4.0], [0.0]])
    assert samples.tolist() == [value, value], "without the first unit there is nothing to measure"


def test_groups_are_the_units() -> None:
    value, samples = grouped_mean([1.0, 1.0, 0.0, 0.0], ["b", "b", "a", "a"])
    assert value == 0.5
    assert samples.tolist() == [0.0, 1.0]


def test_the_interval_of_a_difference_holds_the_truth_in_95_of_100_trials() -> None:
    """IoUs of two models on the same images, the second 0.05 worse: what is hard for both must not widen it."""
    draw = np.random.default_rng(3)
    held = 0
    widths = []
    for _ in range(400):
        union = draw.integers(50, 200, 60).astype(float)
        hard = draw.normal(0, 0.15, 60)
        one, other = (np.clip(0.6 - loss + hard + draw.normal(0, 0.02, 60), 0, 1) * union for loss in (0.0, 0.05))
        samples = [mean_of_ratios(part[:, None], union[:, None])[1] for part in (one, other)]
        by, width = difference(samples[0], samples[1])
        widths.append(width / half_width(samples[0]))
        held += abs(by - 0.05) <= width
    assert 0.92 <= held / 400 <= 0.98
    assert np.mean(widths) < 0.3


def test_a_segmentation_scores_samples_come_to_its_figures() -> None:
    draw = np.random.default_rng(4)
    score = SegmentationScore([3, 8])
    for _ in range(30):
        target = draw.random((12, 12)) < 0.3
        score.add(target ^ (draw.random((12, 12)) < 0.1), target, int(draw.choice([3, 8])))
    samples = score.samples()
    assert samples["mIoU"].mean() == pytest.approx(score.mean_iou, abs=0.01)
    assert samples["FB-IoU"].mean() == pytest.approx(score.fb_iou, abs=0.01)
    assert samples["mIoU"].shape == (30,)


def test_queries_come_to_the_ranking() -> None:
    draw = np.random.default_rng(5)
    sides = (draw.random((20, 30)), draw.integers(0, 5, 20), draw.integers(0, 5, 30), np.zeros(20), np.ones(30))
    found, (curve, mean_ap) = reid_queries(*sides), reid_ranking(*sides)
    assert curve[0] == pytest.approx((found.first == 0).mean())
    assert mean_ap == pytest.approx(found.precision.mean())
    assert found.query.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_of_ratios([[1.0]], [[1.0, 2.0]]), r"numerators \(1, 1\) and denominators \(1, 2\)"),
        (lambda: mean_of_ratios(np.ones((0, 1)), np.ones((0, 1))), "n, k >= 1"),
        (lambda: mean_of_ratios([[0.0]], [[0.0]]), r"all \(1, 1\) denominators are 0"),
        (lambda: grouped_mean([1.0], ["a", "b"]), r"\(1,\) values in 2 groups"),
        (lambda: difference([1.0, 2.0], [1.0]), r"\(2,\) and \(1,\) pseudo-values"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
