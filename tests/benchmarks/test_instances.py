"""``python -m benchmarks.instances``: AP of outlines, and of the connected regions of a mask."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.instances import main
from edgevis import Predictor

from bundles import write_tiny_bundle
from detection_bundles import board
from instance_bundles import write_outliner
from segmentation_bundles import FIXED, fixed_onnx, scene, square, write

pytest.importorskip("pycocotools", reason="masks are measured with it")
pytestmark = pytest.mark.torch

RED, GREEN = (0, 0, 255), (0, 255, 0)


def write_data(folder: Path, image: np.ndarray, masks: list[np.ndarray]) -> Path:
    """The image as the split val, and as train with nothing on it."""
    ids = np.zeros(image.shape[:2], np.uint16)
    for number, mask in enumerate(masks, start=1):
        ids[mask] = number
    for name, pixels in (("images", image), ("instances", ids)):
        (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / name / "a.png"), pixels)
        cv2.imwrite(str(folder / name / "b.png"), np.zeros_like(pixels))
    (folder / "index.csv").write_text("stem,split\na,val\nb,train\n")
    return folder


def rows_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main([*arguments, "--threads", "1", "--json"]) == 0
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return rows


def test_outlines_are_measured_by_their_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_outliner(tmp_path / "cells.edgevis")
    image = board((1, 2, RED), (3, 6, GREEN), rows=4, side=16)
    with Predictor(bundle) as predictor:
        masks = list(predictor.predict(image).masks)
    exact = write_data(tmp_path / "exact", image, masks)
    whole = np.zeros(image.shape[:2], np.bool_)
    whole[16:32, 32:48] = True  # of the first object all of its cell, of which the outline is half
    half = write_data(tmp_path / "half", image, [whole, masks[1]])
    (row,) = rows_of(capsys, "--bundle", str(bundle), "--data", str(exact))
    assert row["images"] == 1
    assert row["mask_ap"][0] == row["mask_ap_50"][0] == pytest.approx(1)  # type: ignore[index]
    (row,) = rows_of(capsys, "--bundle", str(bundle), "--data", str(half))
    assert row["box_ap"][0] > row["mask_ap"][0]  # type: ignore[index, operator]
    assert 0 < row["mask_ap"][0] < 1  # type: ignore[index, operator]


def test_differences_are_to_the_first_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(write_outliner(tmp_path / "cells.edgevis"))
    image = board((1, 2, RED), (3, 6, GREEN), rows=4, side=16)
    with Predictor(bundle) as predictor:
        masks = list(predictor.predict(image).masks)
    data = write_data(tmp_path / "data", image, masks)
    (data / "index.csv").write_text("stem,split\na,val\nb,val\n")
    first, second = rows_of(capsys, "--bundle", bundle, bundle, "--data", str(data))
    assert first["mask_difference"] is first["mask_difference_50"] is None
    assert second["mask_difference"] == second["mask_difference_50"] == [0.0, 0.0]
    assert main(["--bundle", bundle, bundle, "--data", str(data)]) == 0
    assert "+0.000 ± 0.000" in capsys.readouterr().out


def test_regions_of_a_mask_are_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write(tmp_path / "bright.edgevis", FIXED, {"segment": fixed_onnx()["segment"]}, "onnxruntime")
    places = [(8, 8), (40, 40)]
    image = scene(*(((250, 250, 250), top, left) for top, left in places))
    data = write_data(tmp_path / "data", image, [square(top, left) > 0 for top, left in places])
    (row,) = rows_of(capsys, "--bundle", str(bundle), "--data", str(data))
    assert row["mask_ap_50"][0] == pytest.approx(1)  # type: ignore[index]
    assert row["box_ap_50"][0] == pytest.approx(1)  # type: ignore[index]


def test_other_tasks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", np.zeros((8, 8, 3), np.uint8), [np.ones((8, 8), np.bool_)])
    assert main(["--bundle", str(write_tiny_bundle(tmp_path / "tiny.edgevis")), "--data", str(data)]) == 1
    assert "allowed: 'instance_segment', 'segment'" in capsys.readouterr().err
