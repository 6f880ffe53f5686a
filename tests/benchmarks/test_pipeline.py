"""The benchmark of the pipeline on a drawn video whose objects are known."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import overlap, pipeline
from edgevis import Predictor

from bundles import write_tiny_bundle
from detection_bundles import write_detector

SIDE, FRAMES = 40, 30


@pytest.fixture
def hall(tmp_path: Path) -> Path:
    """A folder with bundles, and a video of two squares with labels."""
    write_detector(tmp_path / "squares.edgevis")
    write_tiny_bundle(tmp_path / "reid.edgevis")
    writer = cv2.VideoWriter(str(tmp_path / "hall.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (320, 320))
    rows = ["frame,id,x,y,w,h"]
    texture = 255 * np.kron(np.random.default_rng(0).random((10, 10)) > 0.25, np.ones((4, 4)))
    for index in range(FRAMES):
        frame = np.zeros((320, 320, 3), np.uint8)
        for number, (row, column) in enumerate(((2, 2), (5, 5))):
            frame[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE, 2] = texture
            rows.append(f"{index + 1},{number},{column * SIDE},{row * SIDE},{SIDE},{SIDE}")
        writer.write(frame)
    writer.release()
    (tmp_path / "hall.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_what_is_tracked_without_a_fault_scores_one(hall: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = hall / "figures.json"
    command = ["--detect", str(hall / "squares.edgevis"), "--identify", str(hall / "reid.edgevis")]
    command += ["--video", str(hall / "hall.avi"), "--labels", str(hall / "hall.csv"), "--json", str(figures)]
    assert pipeline.main(command) == 0
    runs = json.loads(figures.read_text())
    assert [run["system"] for run in runs][:2] == ["with Re-ID", "without Re-ID"]
    for run in runs[:2]:
        assert run["scores"]["hota"] == pytest.approx(1, abs=1e-6)
        assert run["scores"]["idf1"] == pytest.approx(1)
        assert run["names"] == 2
        assert run["scores"]["objects"] == 2 * FRAMES
        assert run["fps"] > 0
    out = capsys.readouterr().out
    assert "| hall.avi" in out


def test_wrong_labels_are_an_error(hall: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hall / "other.csv").write_text("frame,who\n1,2\n")
    command = ["--detect", "d", "--identify", "r", "--video", "hall.avi", "--labels", str(hall / "other.csv")]
    assert pipeline.main(command) == 1
    assert "no columns frame, id" in capsys.readouterr().err
    assert pipeline.main([*command, str(hall / "hall.csv")]) == 1
    assert "give one for each" in capsys.readouterr().err


def test_both_forms_of_a_stream_are_timed(hall: Path) -> None:
    with Predictor(hall / "squares.edgevis") as detector, Predictor(hall / "reid.edgevis") as reid:
        rows = overlap.measure(detector, reid, str(hall / "hall.avi"), 10, 2)
    assert [row.what.partition(",")[0] for row in rows] == ["Predictor", "Predictor", "Pipeline"]
    for row in rows:
        assert len(row.steps) == len(row.stream) == 2
        assert min(row.steps + row.stream) > 0
        assert len(row.cells()) == len(overlap.HEADERS)
    for ahead in (False, True):
        ages = overlap._ages(str(hall / "hall.avi"), ahead, 1, 1, 60.0)
        assert 0 < len(ages) <= FRAMES
        assert min(ages) > 0
