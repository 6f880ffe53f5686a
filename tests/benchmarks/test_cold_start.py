"""The cold-start benchmark, on a tiny bundle in fresh processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import cold_start

from bundles import edited_manifest


def test_every_engine_is_started_afresh(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cold_start.main(["--bundle", str(tiny_bundle), "--runs", "1", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["engine"] == "onnxruntime-fp32"
    parts = [found[key] for key in ("import_s", "open_s", "first_result_s")]
    assert min(parts) > 0
    assert found["total_s"] == pytest.approx(sum(parts))
    assert 20e6 < found["peak_memory_bytes"] < 2e9


def test_an_engine_that_does_not_start_is_named(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with edited_manifest(tiny_bundle) as data:
        data["files"]["engines/onnxruntime-fp32/embed.onnx"]["sha256"] = "0" * 64
    assert cold_start.main(["--bundle", str(tiny_bundle), "--runs", "1"]) == 1
    assert "onnxruntime-fp32 does not run here" in capsys.readouterr().err
