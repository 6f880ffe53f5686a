"""Masks without training: on drawn pictures they are found; the table compares all methods on the same episodes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.mask_prototypes import main
from edgevis import models

from built import small_bundle
from bundles import needs_openvino

pytestmark = pytest.mark.torch

COLOURS = {1: (40, 40, 220), 2: (40, 220, 40), 3: (220, 40, 40), 4: (30, 220, 220), 5: (220, 30, 220)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: their maps tell a coloured square from its background."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    model = models.create("hsnet-hm", backbone="efficientnet-lite0", side=97)
    save_file(dict(model.backbone.state_dict()), path)  # type: ignore[union-attr]
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares of one colour for each class on grey noise."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    rows = ["stem,split"]
    for number in range(30):
        class_id = number % 5 + 1
        image = draw.integers(100, 140, (96, 96, 3), dtype=np.uint8)
        mask = np.zeros((96, 96), np.uint8)
        x, y = (int(place) for place in draw.integers(4, 44, 2))
        mask[y : y + 44, x : x + 44] = class_id
        image[mask > 0] = COLOURS[class_id]
        cv2.imwrite(str(folder / "images" / f"s{number:02}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"s{number:02}.png"), mask)
        rows.append(f"s{number:02},{'train' if number < 15 else 'val'}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_prototypes_find_what_is_like_the_example(
    backbone: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--data",
        str(pictures),
        "--backbone",
        f"efficientnet-lite0={backbone}",
        "--side",
        "97",
        "--shots",
        "1",
    ]
    assert main([*arguments, "--episodes", "8", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    square = 44 * 44 / 96**2
    prototypes = rows["prototypes"]["mean_iou"][0]
    assert rows["everything"]["mean_iou"][0] == pytest.approx(square)
    assert prototypes > 2 * square
    assert rows["everything"]["difference"][0] == pytest.approx(square - prototypes, abs=0.05)
    assert main([*arguments, "--in-turn", "2"]) == 0
    assert "6 episodes of 1 novel classes" in capsys.readouterr().out


@needs_openvino
@pytest.mark.xdist_group("hsnet-hm")
def test_a_bundles_engines_find_the_same(
    tmp_path_factory: pytest.TempPathFactory, backbone: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights find something; through a predictor with either engine it is the same."""
    bundle = small_bundle(tmp_path_factory, "hsnet-hm")
    arguments = ["--data", str(pictures), "--backbone", f"efficientnet-lite0={backbone}", "--side", "97"]
    assert main([*arguments, "--shots", "1", "--episodes", "3", "--bundle", str(bundle), "--json"]) == 0
    rows = {row["method"]: row["fb_iou"][0] for row in json.loads(capsys.readouterr().out)}
    one, other = (rows[f"{bundle.stem} {engine}"] for engine in ("onnxruntime-fp32", "openvino-fp32"))
    assert 0 < one < 1
    assert other == pytest.approx(one, abs=0.02)


def test_what_cannot_be_measured(backbone: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(pictures), "--backbone", "efficientnet-lite0"]) == 1
    assert "allowed: NAME=FILE" in capsys.readouterr().err
    arguments = ["--data", str(pictures), "--backbone", f"efficientnet-lite0={backbone}", "--side", "97"]
    assert main([*arguments, "--weights", str(backbone)]) == 1
    assert "does not say which model it is of" in capsys.readouterr().err
