"""The benchmark of enrolment quality: of persons drawn in code the gate leaves out what was damaged, hardly more."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import enrolment_quality
from edgevis import Predictor

from bundles import Tiny, textured, write_tiny_bundle

PERSONS, IMAGES = 10, 4


@pytest.fixture
def persons(tmp_path: Path) -> Path:
    """Ten persons, each seen four times by either of two cameras: other light, other noise, moved by a pixel."""
    path = tmp_path / "persons.zip"
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["path", "pid", "camid"])
    with zipfile.ZipFile(path, "w") as archive:
        for person in range(PERSONS):
            for camera in (1, 2):
                for number in range(IMAGES):
                    random = np.random.default_rng([person, camera, number])
                    seen = textured(person, 72, 40)[number : number + 64, number : number + 32].astype(np.float64)
                    image = np.clip(seen * random.uniform(0.7, 1.0) + random.normal(0, 4, seen.shape), 0, 255)
                    name = f"{person}/{camera}_{number}.png"
                    archive.writestr(name, cv2.imencode(".png", image.astype(np.uint8))[1].tobytes())
                    rows.writerow([name, person, camera])
        archive.writestr("labels.csv", table.getvalue())
    return path


@pytest.fixture(autouse=True)
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 22 x 28 is to 128 x 256, to the tiny model's 16 x 32."""
    monkeypatch.setattr(enrolment_quality, "SIZE", (4, 5))


@pytest.mark.parametrize("task", ["reid", "classify"])
def test_the_gate_leaves_what_was_damaged(
    tmp_path: Path, persons: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.edgevis", Tiny(task))
    command = [
        "--bundle",
        str(bundle),
        "--data",
        str(persons),
        "--shots",
        "3",
        "--damaged",
        "1",
        "--draws",
        "3",
        "--json",
    ]
    assert enrolment_quality.main(command) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["enrolled"] for row in rows] == 2 * [
        "3 clean",
        "3, 1 of them damaged",
        "3, 1 of them damaged, gate",
        "2 clean",
    ]
    assert [row["damage"] for row in rows] == 4 * ["22x28"] + 4 * ["22x28 enlarged"]
    for clean, damaged, gate, fewer in (rows[:4], rows[4:]):
        assert clean["images"] == damaged["images"] == 3
        assert gate["images"] <= 2.0  # nothing that was damaged is let in
        assert gate["images"] >= 1.0  # and little else: to the tiny random model some persons are near to others
        assert fewer["images"] == 2
        if gate["images"] == 2:
            assert [gate[key] for key in ("fpir", "tpir")] == [fewer[key] for key in ("fpir", "tpir")]
        for row in (clean, damaged, gate, fewer):
            assert all(0 <= row[key][0] <= 1 for key in ("fpir", "tpir", "fpir_damaged", "tpir_again"))
        assert [row["labels"] for row in (clean, damaged, fewer)] == [4, 4, 4]
        assert 3 <= gate["labels"] <= 4  # a person of whom no image passed is not enrolled


def test_a_table(tmp_path: Path, persons: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.edgevis")
    command = ["--bundle", str(bundle), "--data", str(persons), "--shots", "2", "--damaged", "2", "--draws", "2"]
    assert enrolment_quality.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "threshold: FPIR 5% with clean images; mean of 2 draws ± 95 % interval"
    assert len(lines) == 3 + 2 * 3  # without clean ones there is no fourth row


def test_the_gate_enrols_what_nothing_speaks_against(predictor: Predictor) -> None:
    good, small = textured(1, 64, 32), textured(2, 5, 4)
    assert enrolment_quality.pass_gate(predictor, "anna", [small, good, textured(3, 64, 32)]) == [1, 2]
    assert predictor.labels == ("anna",)
    assert enrolment_quality.pass_gate(predictor, "ben", [small]) == []
    assert predictor.labels == ("anna",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--shots", "9"], "lower --shots"), (["--known", "0.01"], "give more of them")],
)
def test_data_that_do_not_suffice(
    tmp_path: Path, persons: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.edgevis")
    assert enrolment_quality.main(["--bundle", str(bundle), "--data", str(persons), *arguments]) == 1
    assert message in capsys.readouterr().err
