"""The interval of few-shot accuracies against few-shot-meta-baseline's and tables of Student's t."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgevis.metrics import episode_accuracy
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER / "fewshot_eval.npz"


def test_interval_is_the_references() -> None:
    golden = np.load(GOLDEN)
    found = episode_accuracy(golden["ci/acc"])
    assert found.mean == pytest.approx(float(golden["ci/acc"].mean()), rel=1e-12)
    assert found.half_width95 == pytest.approx(float(golden["ci/half_width95"]), rel=1e-9)
    assert found.episodes == 40


# Two-sided 95 % points, from the table in Abramowitz and Stegun (26.10) and, for large numbers, SciPy 1.17.
@pytest.mark.parametrize(
    ("episodes", "factor"),
    [(2, 12.706205), (3, 4.302653), (4, 3.182446), (5, 2.776445), (6, 2.570582), (31, 2.042272), (8000, 1.960261)],
)
def test_factor_is_students_t(episodes: int, factor: float) -> None:
    values = np.arange(episodes) % 2
    expected = factor * values.std(ddof=1) / math.sqrt(episodes)
    assert episode_accuracy(values).half_width95 == pytest.approx(expected, rel=1e-6)


def test_equal_episodes_have_no_interval() -> None:
    assert episode_accuracy([0.5, 0.5, 0.5]).half_width95 == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5], "E >= 2"),
        ([], "E >= 2"),
        ([[0.5, 0.5]], r"shape \(1, 2\)"),
        ([0.5, math.nan], "NaN"),
        ([0.5, 82.0], "divided by 100"),
        (["0.5", "0.6"], "dtype <U3"),
    ],
)
def test_wrong_accuracies(values: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        episode_accuracy(values)  # type: ignore[arg-type]
