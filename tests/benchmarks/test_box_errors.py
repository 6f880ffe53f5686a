"""Where arms go wrong: angles and distances of drawn objects, sums over bins, and the table of trained arms."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import accuracy, box_errors
from benchmarks.box_errors import (
    ALL,
    ANGLES,
    DISTANCES,
    SIZES,
    angle_to_sides,
    counted,
    errors_by_place,
    inner_distance,
)

from training_data import write_masks

pytestmark = pytest.mark.torch


def _rectangle() -> np.ndarray:  # type: ignore[type-arg]
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:50] = True
    return mask


def test_angles_of_a_square_and_of_a_diamond() -> None:
    angles = angle_to_sides(_rectangle())
    assert angles[20, 9] < 1
    assert angles[10, 30] < 1
    diamond = np.zeros((61, 61), np.uint8)
    cv2.fillConvexPoly(diamond, np.array([[30, 5], [55, 30], [30, 55], [5, 30]]), 1)
    angles = angle_to_sides(diamond > 0)
    assert angles[17, 17] == pytest.approx(45, abs=2)
    assert angles[43, 44] == pytest.approx(45, abs=2)


def test_distances_from_the_box() -> None:
    inner = inner_distance(_rectangle())
    assert inner[20, 9] < 0 < inner[20, 10] == pytest.approx(0.05)
    assert inner[20, 30] == pytest.approx(0.95)


def test_errors_lie_where_they_are_and_add_up() -> None:
    true = _rectangle()
    found = true.copy()
    found[10, 20:40] = False  # 20 missed along the upper side
    found[20, 50:54] = True  # 4 false ones, outside of the box
    errors = errors_by_place(found, true)
    assert errors[ALL] == (20, 4)
    assert errors[DISTANCES[0]] == (0, 4)
    assert errors[DISTANCES[1]] == (20, 0)
    assert errors[ANGLES[0]] == (20, 4)
    wide = np.zeros((80, 120), bool)
    wide[20:60, 20:100] = True
    small = np.zeros((30, 30), bool)
    small[5:10, 5:10] = True
    counts = counted([found, wide, np.zeros_like(small)], [true, wide, small], ["a", "b", "a"])
    assert counts[ALL].tolist() == [[45, 4, 825], [0, 0, 3200]]  # of the volumes a and b
    for names in (ANGLES, DISTANCES):
        assert sum(counts[name][:, :2].sum() for name in names) == counts[ALL][:, :2].sum()
    assert [counts[name].sum(0).tolist() for name in SIZES] == [[25, 0, 25], [20, 4, 800], [0, 0, 3200]]


def test_trained_arms_are_compared_with_the_same_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, runs = write_masks(tmp_path / "data"), tmp_path / "runs"
    few = ["--set", "epochs=1", "--set", "steps_per_epoch=1", "--set", "batch=2", "--option", "side=32"]
    for arm in ("mil", "masks"):
        assert (
            accuracy.main(["boxes", "--data", str(data), "--output", str(runs), "--seeds", "3", "--only", arm, *few])
            == 0
        )
    capsys.readouterr()
    arguments = ["--data", str(data), "--runs", str(runs), "--seeds", "3", "--json"]
    assert box_errors.main([*arguments, "--arms", "mil", "masks"]) == 0
    rows = {(row["arm"], row["bin"]): row for row in json.loads(capsys.readouterr().out)}
    assert rows["masks", ALL]["difference"][0] == pytest.approx(
        rows["masks", ALL]["both"][0] - rows["mil", ALL]["both"][0], rel=0.3
    )
    assert rows["mil", ALL]["difference"] is None
    assert rows["mil", ALL]["both"][0] == pytest.approx(rows["mil", ALL]["missed"] + rows["mil", ALL]["false"])
    assert box_errors.main(arguments) == 1
    assert "train all arms first" in capsys.readouterr().err
