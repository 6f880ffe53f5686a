"""What outlines can reach, on drawn shapes whose figures are known."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.outline_bound import main, true_outlines
from edgevis.data.instances import Instances

pytest.importorskip("pycocotools", reason="masks are measured with it")
pytestmark = pytest.mark.torch

SIDE = 128
Mask = np.ndarray


def disc(radius: int, *, x: int = 64, y: int = 64) -> Mask:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


def view_of(*masks: Mask) -> Instances:
    ids = np.zeros((SIDE, SIDE), np.uint16)
    for number, mask in enumerate(masks, start=1):
        ids[mask] = number
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    return Instances(image, ids, np.zeros(len(masks), np.int64), np.zeros(len(masks), np.bool_))


def test_a_disc_is_reached_and_its_hole_is_not() -> None:
    (iou,) = true_outlines(view_of(disc(40)), SIDE, ends="edges").ious()
    assert iou > 0.98
    ring = disc(40) & ~disc(20)
    (iou,) = true_outlines(view_of(ring), SIDE, ends="edges").ious()
    assert iou == pytest.approx(1 - 20**2 / 40**2, abs=0.01)


def test_a_crescent_loses_its_bay() -> None:
    crescent = disc(40) & ~disc(40, x=84)
    (iou,) = true_outlines(view_of(crescent), SIDE, ends="edges").ious()
    assert 0.3 < iou < 0.95


def test_pixels_reach_a_large_disc_and_no_small_one() -> None:
    ious = {
        (ends, radius): float(true_outlines(view_of(disc(radius)), SIDE, ends=ends).ious()[0])
        for ends in ("pixels", "edges")
        for radius in (5, 40)
    }
    assert min(ious["pixels", 40], ious["edges", 40], ious["edges", 5]) > 0.95
    assert ious["pixels", 5] < 0.7


def test_an_object_between_points_is_learned_at_a_larger_input() -> None:
    """Points lie at 4, 12, 20, …; the square covers 63 to 65."""
    square = np.zeros((SIDE, SIDE), np.bool_)
    square[63:66, 63:66] = True
    small, large = (true_outlines(view_of(square), side, ends="edges") for side in (SIDE, 4 * SIDE))
    assert small.learned.tolist() == [False]
    assert not small.at_point.any()
    assert small.ious()[0] == pytest.approx(1)
    assert large.learned.tolist() == [True]
    assert (large.at_point & square).any()


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a disc and a square between points a half is found."""
    square = np.zeros((SIDE, SIDE), np.bool_)
    square[95:98, 15:18] = True
    for name in ("images", "instances"):
        (tmp_path / name).mkdir()
    ids = view_of(disc(30), square).ids
    for stem in ("a", "b"):
        cv2.imwrite(str(tmp_path / "images" / f"{stem}.png"), np.zeros((SIDE, SIDE, 3), np.uint8))
        cv2.imwrite(str(tmp_path / "instances" / f"{stem}.png"), ids)
    (tmp_path / "index.csv").write_text("stem,split\na,test\nb,test\n")
    arguments = ["--data", str(tmp_path), "--side", str(SIDE)]
    assert main([*arguments, "--rays", "edges", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["rays"], row["side"], row["images"]) == ("edges", SIDE, 2)
    assert (row["objects"], row["without_point"]) == (4, 2)
    assert row["iou"][0] > 0.97
    assert row["mask_ap_50"][0] == pytest.approx(0.5, abs=0.01)  # at half of the 101 recalls
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("\n") == 4
    assert main(["--data", str(tmp_path), "--side", "100"]) == 1
    assert "allowed: multiples of 128" in capsys.readouterr().err
