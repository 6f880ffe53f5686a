"""The picture of the demo's other tasks, from real bundles: the weights that ship, in small builds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from benchmarks import showcase
from edgevis import models
from runtime.bundle.bundle import Bundle

from built import small_bundle

pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("enet")]


def test_three_bundles_make_a_picture(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finder = small_bundle(tmp_path_factory, "hsnet-hm")
    manifest = Bundle(finder).manifest
    assert manifest.weights.trained
    assert manifest.options == {"backbone": "mobilenetv2", "side": 65}
    assert manifest.deployment.preprocess.mean == (0.5, 0.5, 0.5)
    assert [engine.name for engine in manifest.engines if engine.holds_parity] == ["onnxruntime-fp32", "openvino-fp32"]
    assert "HybridMask" in {node.op_type for node in onnx.load(finder / "graphs" / "support.onnx").graph.node}
    segmenter = small_bundle(tmp_path_factory, "enet")
    bundles = ["--find", str(finder), "--segment", str(segmenter), "--classify"]
    capsys.readouterr()
    classifier = str(small_bundle(tmp_path_factory, "resnet12"))
    assert showcase.main([*bundles, classifier, "--output", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    assert "of 32 views recognised, one picture of each enrolled" in printed
    assert printed.count("Few-shot segmentation: ") == printed.count("Segmentation: ") == 3
    picture = cv2.imread(str(tmp_path / "demo" / "showcase.jpg"))
    assert picture is not None
    assert picture.shape[0] > 900
    assert showcase.main([*bundles, str(tmp_path), "--output", str(tmp_path / "demo")]) == 1


def test_a_view_is_square_and_unlike_the_others() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    one, other = (showcase.view_of(image, np.random.default_rng(seed)) for seed in (1, 2))
    assert one.shape == other.shape == (60, 60, 3)
    assert np.abs(one.astype(int) - other).mean() > 10


def test_what_ships_is_small() -> None:
    shipped = [path for name in models.names() if (path := models.shipped_weights(name)) is not None]
    assert {path.stem for path in shipped} == {
        "efficientnet-lite0",
        "enet",
        "hsnet-hm",
        "osnet-in-x0-5",
        "osnet-x0-25",
        "person-detector",
        "person-segmenter",
        "prior-net",
    }
    assert sum(path.stat().st_size for path in shipped) < 60e6
