"""Segmentation, detection and instance segmentation bundles on each backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundles import installed
from detection_bundles import write_detector
from instance_bundles import write_outliner
from segmentation_bundles import FEW_SHOT, FIXED, few_shot_onnx, fixed_onnx, write

BACKENDS = [
    "onnxruntime",
    pytest.param("openvino", marks=pytest.mark.skipif(not installed("openvino"), reason="openvino is not installed")),
]


@pytest.fixture(params=BACKENDS)
def few_shot(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "colours.edgevis", FEW_SHOT, few_shot_onnx(), request.param)


@pytest.fixture(params=BACKENDS)
def fixed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "levels.edgevis", FIXED, fixed_onnx(), request.param)


@pytest.fixture(params=BACKENDS)
def cells(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_detector(tmp_path / "cells.edgevis", request.param)


@pytest.fixture(params=BACKENDS)
def outlines(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_outliner(tmp_path / "outlines.edgevis", request.param)
