"""Borders and milliseconds of bundles side by side, on pictures whose figures are known."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.boundaries import main

from segmentation_bundles import FIXED, fixed_onnx, onnx_of, scene, write

SIDE = 32


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two bright squares of 16 pixels; the second's mask lacks its outermost ring."""
    folder = tmp_path / "data"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, ring in enumerate((0, 1)):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[8 + ring : 24 - ring, 8 + ring : 24 - ring] = 1
        cv2.imwrite(str(folder / "images" / f"{number}.png"), scene(((250,) * 3, 8, 8), height=SIDE, width=SIDE))
        cv2.imwrite(str(folder / "masks" / f"{number}.png"), mask)
    (folder / "index.csv").write_text("stem,split\n0,val\n1,val\n")
    return folder


def test_by_hand(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundles = [
        str(write(tmp_path / f"{name}.edgevis", FIXED, fixed_onnx(), "onnxruntime")) for name in ("first", "second")
    ]
    arguments = [*bundles, "--data", str(data), "--seconds", "0.1", "--threads", "1"]
    assert main([*arguments, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["bundle"], first["engine"], first["images"]) == ("first", "onnxruntime-fp32", 2)
    assert first["iou"][0] == pytest.approx((1 + 14**2 / 16**2) / 2)
    # Strips of one pixel, which lie beside each other.
    assert first["boundary_iou"][0] == pytest.approx(0.5)
    assert first["boundary_difference"] is None
    assert first["boundary_to_first_engine"] is first["iou_to_first_engine"] is None
    assert second["boundary_difference"] == second["iou_difference"] == [0.0, 0.0]
    assert second["p50_ms"] > 0
    assert main(arguments) == 0
    assert "+0.000 ± 0.000" in capsys.readouterr().out


def test_a_precision_is_compared_with_the_first_engine(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second engine finds the ground, which lies around both squares, instead of them."""
    ground = {"segment": onnx_of(FIXED.graphs[0], [("Sub", ["high", "image"], "below"),
        ("Concat", ["below", "below"], "both"), ("Mul", ["both", "steep"], "logits")], axis=1)}  # fmt: skip
    bundle = write(tmp_path / "first.edgevis", FIXED, fixed_onnx(), "onnxruntime", int8=ground)
    assert main([str(bundle), "--data", str(data), "--seconds", "0.1", "--threads", "1", "--json"]) == 0
    whole, changed = json.loads(capsys.readouterr().out)
    assert (whole["engine"], changed["engine"]) == ("onnxruntime-fp32", "onnxruntime-int8")
    assert whole["iou_to_first_engine"] is whole["boundary_to_first_engine"] is None
    assert changed["boundary_difference"] is None
    assert changed["iou_to_first_engine"][0] == pytest.approx(changed["iou"][0] - whole["iou"][0])
    assert changed["boundary_to_first_engine"][0] == pytest.approx(changed["boundary_iou"][0] - 0.5)
    assert changed["iou_to_first_engine"][0] < -0.5


def test_one_picture_has_no_interval(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "index.csv").write_text("stem,split\n0,val\n1,train\n")
    bundle = write(tmp_path / "first.edgevis", FIXED, fixed_onnx(), "onnxruntime")
    assert main([str(bundle), "--data", str(data)]) == 1
    assert "has 1 picture of the split 'val'; allowed: two or more" in capsys.readouterr().err
