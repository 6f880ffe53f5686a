"""The command line over a detection bundle."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis.cli import main

from detection_bundles import board, write_detector

RED, GREEN = (0, 0, 255), (0, 255, 0)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_detector(tmp_path / "cells.edgevis")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), board((1, 2, RED), (3, 6, GREEN), (3, 1, GREEN), rows=4, side=16))
    cv2.imwrite(str(folder / "b.png"), board())
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_the_table_counts_objects(bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split("  ") for line in printed(capsys, "predict", bundle, photos).splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells[0][:3] == ["image", "label", "score"]
    assert cells[2][:2] == ["a.png", "2 green, 1 red"]
    assert cells[2][2] == "1.00 to 1.00"
    assert cells[3][:3] == ["b.png", "nothing", "–"]


def test_json_and_drawings(bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("predict", bundle, photos, "--json", "--output", photos.parent / "drawn", "--threshold", 0.9)
    data = json.loads(printed(capsys, *command))
    assert data["threshold"] == 0.9
    first, second = data["results"]
    assert {item["label"] for item in first["detections"]} == {"red", "green"}
    assert first["detections"][0]["box_xyxy"] == [32, 16, 48, 32]
    assert second["detections"] == []
    drawn, image = (cv2.imread(path) for path in (first["plot"], str(photos / "a.png")))
    assert drawn is not None
    assert image is not None
    assert drawn.shape == image.shape
    assert np.abs(drawn.astype(int) - image).max() > 100


def test_a_video_is_read(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = board((2, 2, RED), (5, 5, GREEN), side=32)
    writer = cv2.VideoWriter(str(tmp_path / "door.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (256, 256))
    for _ in range(3):
        writer.write(frame)
    writer.release()
    command = ("predict", bundle, tmp_path / "door.avi")
    lines = [json.loads(line) for line in printed(capsys, *command, "--jsonl").splitlines()]
    assert [(line["frame"], len(line["detections"])) for line in lines] == [(0, 2), (1, 2), (2, 2)]
    assert printed(capsys, *command, "--format", "csv", "--frames", 2).count("\nframe-") == 4
    frames = [line.partition(",")[0] for line in printed(capsys, *command, "--format", "mot").splitlines()]
    assert frames == ["1", "1", "2", "2", "3", "3"]
    data = json.loads(printed(capsys, *command, "--format", "coco", "--frames", 1))
    assert (data["images"][0]["height"], data["images"][0]["width"], len(data["annotations"])) == (256, 256, 2)


def test_info_shows_labels_and_threshold(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "colours (detect)" in printed(capsys, "info", bundle)
    running = json.loads(printed(capsys, "info", bundle, "--json"))["running"]
    assert (running["labels"], running["threshold"], running["open_set"]) == (["red", "green"], 0.5, None)


def test_bench_times_it(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(printed(capsys, "bench", bundle, "--seconds", "0.05", "--batch", "1,2", "--json"))
    assert [item["batch"] for item in data["results"]] == [1, 2]
