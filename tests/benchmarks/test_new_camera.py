"""``python -m benchmarks.new_camera``: who was seen by the new camera is not told."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.new_camera import divide, main

from training_data import write_persons

pytestmark = pytest.mark.torch


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open() as file:
        return list(csv.DictReader(file))


def test_both_folders(tmp_path: Path) -> None:
    data = write_persons(tmp_path / "persons")
    before = rows(data)
    training = [row for row in before if row["split"] == "train"]
    cameras = sorted({row["camid"] for row in training})
    labelled, unlabelled = divide(data, cameras[-1], tmp_path / "out")
    assert (labelled + unlabelled, labelled > 0, unlabelled > 0) == (len(training), True, True)
    after = rows(tmp_path / "out" / "labelled")
    assert {row["camid"] for row in after if row["split"] == "train"} == set(cameras[:-1])
    # Queries and gallery are as they were, of all cameras.
    assert [row for row in after if row["split"] != "train"] == [row for row in before if row["split"] != "train"]
    assert all((tmp_path / "out" / "labelled" / row["path"]).is_file() for row in after)
    pictures = sorted((tmp_path / "out" / "unlabelled").iterdir())
    assert [path.stem for path in pictures] == [f"{number:05}" for number in range(unlabelled)]
    new = [row for row in training if row["camid"] == cameras[-1]]
    assert pictures[0].read_bytes() == (data / new[0]["path"]).read_bytes()


def test_a_camera_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_persons(tmp_path / "persons")
    assert main([str(data), "--camera", "9", "--output", str(tmp_path / "out")]) == 1
    assert "camera is '9'; allowed: one of several of the training pictures: 1, 2" in capsys.readouterr().err
