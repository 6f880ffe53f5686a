"""``python -m benchmarks.detection``: AP of a bundle's engines on pictures whose objects are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.detection import main

from bundles import needs_openvino, write_tiny_bundle
from detection_bundles import SIDE, write_detector

pytest.importorskip("pycocotools", reason="detections are measured with it")
pytestmark = [pytest.mark.torch, needs_openvino]

RED, GREEN = (0, 0, 255), (0, 255, 0)
CATEGORIES = [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}, {"id": 9, "name": "violet"}]


def write_sample(folder: Path) -> Path:
    """Two pictures of val2017: one whose two objects are found, one with an object that is not; one of train2017."""
    annotations = {
        "found": [(3, [8, 16, 16, 24]), (7, [40, 0, 48, 8]), (9, [0, 40, 8, 48])],
        "missed": [(3, [32, 32, 40, 40]), (3, [0, 0, 8, 8])],
        "trained": [(3, [0, 0, 64, 64])],
    }
    painted = {"found": [(RED, (8, 16)), (GREEN, (40, 0))], "missed": [(RED, (32, 32))], "trained": []}
    (folder / "images").mkdir(parents=True)
    for stem, cells in painted.items():
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        for colour, (x, y) in cells:
            image[y : y + 8, x : x + 8] = colour
        assert cv2.imwrite(str(folder / "images" / f"{stem}.png"), image)
    listed = {
        stem: [{"category_id": number, "box_xyxy": box, "iscrowd": 0} for number, box in boxes]
        for stem, boxes in annotations.items()
    }
    (folder / "annotations.json").write_text(json.dumps({"categories": CATEGORIES, "images": listed}))
    with (folder / "index.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("stem", "coco_split"))
        rows.writerows((stem, "train2017" if stem == "trained" else "val2017") for stem in annotations)
    return folder


def test_average_precision_of_known_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, data = write_detector(tmp_path / "blobs.edgevis"), write_sample(tmp_path / "data")
    command = ["--bundle", str(bundle), "--data", str(data), "--seconds", "0.01", "--threads", "1"]
    assert main([*command, "--label", "red", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["detector"].startswith("blobs ")
    assert row["images"] == 2
    assert row["classes"] == 2
    # Two of three red objects come back, exact and before any error: precision 1 up to recall 2/3, 67 of 101 points.
    assert [row["label_ap"][0], row["label_ap_50"][0]] == pytest.approx([67 / 101] * 2)
    # The green one is found.
    assert row["ap"][0] == pytest.approx((67 / 101 + 1) / 2)
    assert 0 < row["engine_least_ms"] <= row["engine_ms"] <= row["predict_ms"]
    assert main([*command, "--label", "red"]) == 0
    assert "0.663" in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, data = write_detector(tmp_path / "blobs.edgevis"), write_sample(tmp_path / "data")
    assert main(["--bundle", str(bundle), "--data", str(data), "--label", "violet"]) == 1
    assert "both the data and the bundle need the class 'violet'; both have: red, green" in capsys.readouterr().err
    assert main(["--bundle", str(bundle), "--data", str(data), "--engine", "tensorrt-int8"]) == 1
    assert "no engine is left" in capsys.readouterr().err
    other = write_tiny_bundle(tmp_path / "tiny.edgevis")
    assert main(["--bundle", str(other), "--data", str(data)]) == 1
    assert "allowed: 'detect'" in capsys.readouterr().err
