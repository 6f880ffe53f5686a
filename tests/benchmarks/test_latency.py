"""The latency benchmark, on a small model that is built for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import latency

from built import small_bundle


def test_every_engine_against_pytorch(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Few-shot segmentation, whose prediction needs an enrolment first."""
    bundle = small_bundle(tmp_path_factory, "hsnet-hm")
    arguments = ["--bundle", str(bundle), "--batch", "1,2", "--seconds", "0.05", "--starts", "1"]
    assert latency.main([*arguments, "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "latency.json").read_text())
    names = [(row["engine"], row["batch"]) for row in rows]
    engines = (latency.EAGER, "onnxruntime-fp32", "openvino-fp32")
    assert names == [(engine, batch) for batch in (1, 2) for engine in engines]
    for row in rows:
        assert row["rounds"] >= 5
        assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["p50_ms"] * 1e3)
        assert row["cold_start_s"] > 0
        assert row["peak_memory_bytes"] > 20e6
        eager = next(item for item in rows if item["engine"] == latency.EAGER and item["batch"] == row["batch"])
        assert row["times_eager"] == pytest.approx(eager["p50_ms"] / row["engine_p50_ms"])
        assert row["predictor_times_eager"] == pytest.approx(eager["p50_ms"] / row["p50_ms"])
        assert (row["shares"] is None) == (row["engine"] == latency.EAGER)
        assert row["shares"] is None or sum(row["shares"]) == pytest.approx(1.0)
    assert (tmp_path / "latency.md").read_text().count("\n") == 2 + len(rows)
    chart = (tmp_path / "latency.svg").read_text()
    assert chart.count("openvino-fp32") >= 2


def test_engines_are_chosen(tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle(tmp_path_factory, "resnet12")
    arguments = ["--bundle", str(bundle), "--batch", "1", "--seconds", "0.05", "--starts", "1"]
    assert latency.main([*arguments, "--backend", "openvino", "--precision", "fp32", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["engine"] for row in rows] == [latency.EAGER, "openvino-fp32"]
    assert latency.main([*arguments, "--precision", "fp16"]) == 1
    assert "no engine to measure; none was asked for" in capsys.readouterr().err
    assert latency.main(["--bundle", str(bundle), "--batch", "0"]) == 1
    assert "--batch is '0'; allowed: sizes of 1 to 4096" in capsys.readouterr().err
