"""``python -m benchmarks.box_fit``: each epoch of a training measured by its boxes and by its masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.box_fit import main, rank_correlation

from training_data import write_masks

pytestmark = pytest.mark.torch

SMALL = ("--option", "side=32", "--set", "epochs=3", "--set", "steps_per_epoch=1", "--set", "batch=2")


def test_every_epoch_is_measured_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_masks(tmp_path / "data")
    assert main(["--data", str(data), *SMALL, "--set", "held_out=0.5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(0 <= row[name] <= 1 for row in rows for name in ("box_fit", "dice"))
    known = rank_correlation([row["box_fit"] for row in rows], [row["dice"] for row in rows])
    assert all(row["correlation"] == pytest.approx(known) for row in rows)


def test_without_images_set_aside_there_is_nothing_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(write_masks(tmp_path / "data")), *SMALL, "--set", "held_out=0.0"]) == 1
    assert "allowed: held_out above 0, and more images" in capsys.readouterr().err
