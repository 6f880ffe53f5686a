"""A build is as silent as what it makes: it leaves no file in HOME and looks nobody up."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundles import needs_openvino
from guarded import assert_silent, guarded
from locations import ROOT

pytestmark = [pytest.mark.torch, needs_openvino]


_CALIBRATE = """
import sys, time
from pathlib import Path
from built import Recorder
from export.stages import build_bundle
from export.request import BuildRequest
from tiny_models import pictures, tiny_entry, write_pictures

photographs = write_pictures(Path(sys.argv[1]) / "people", pictures(48))
request = BuildRequest(
    tiny_entry(), Path(sys.argv[1]) / "tiny.edgevis", precisions=("fp32", "int8"), calibration_data=photographs
)
print(sorted(record.name for record in build_bundle(request, Recorder()).manifest.engines))
time.sleep(3)
"""


def test_calibration_is_silent(tmp_path: Path) -> None:
    process = guarded(tmp_path / "home", "-c", _CALIBRATE, tmp_path)
    assert_silent(process, tmp_path / "home")
    assert "openvino-int8" in process.stdout


def test_a_build_is_silent(tmp_path: Path) -> None:
    arguments = ("--model", "feat", "--precision", "fp32", "--output", tmp_path / "feat.edgevis", "--quiet")
    process = guarded(tmp_path / "home", "-m", "export.build", *arguments, cwd=ROOT)
    assert_silent(process, tmp_path / "home")
