"""Which layers hurt in INT8, which go back to float for it, and what a build makes of the engines it measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.quantize import graph as quantization
from calibration.quantize.config import QuantizationConfig
from calibration.quantize.graph import Ranges, measure_ranges
from calibration.quantize.qdq import with_qdq
from calibration.quantize.rules import Prepared, prepare
from calibration.search.calibrate import calibrate
from calibration.search.chart import bar_chart, svg_text
from calibration.search.exclusions import fewest_exclusions
from calibration.search.sensitivity import LayerSensitivity, graph_sensitivities, layer_sensitivities
from edgevis import models
from export import sensitivity as report
from export.build import main
from export.engine_selection import FASTEST, PASSES, candidates_of, drop_of_parity, summary_text
from export.onnx import onnx_from_module
from export.request import BuildRequest
from export.stages import build_bundle
from runtime.bundle.build_report import candidates_table
from runtime.bundle.manifest import Decisions, EngineRecord, GraphParity, Manifest, ParityReport
from runtime.errors import ExportError

from built import Recorder
from bundles import needs_openvino
from tiny_models import DEPLOYMENT, GRAPH, feeds_of, pictures, reference_of, tiny_entry, tiny_net, write_pictures

# What its fixtures build, one worker builds.
pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("sensitivity")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "people", pictures(48))


# --- sensitivity


def read_by(prepared: Prepared, layer: str) -> str:
    """The name of the activation that a layer reads."""
    value = next(node.inputs[0] for node in prepared.model.graph if node.name == layer)
    assert value is not None
    assert value.name
    return value.name


@pytest.fixture(scope="module")
def measured() -> tuple[LayerSensitivity, ...]:
    prepared = prepare(onnx_from_module(tiny_net(), GRAPH), QuantizationConfig().operators)
    ranges = measure_ranges(prepared, feeds_of(pictures(24)), QuantizationConfig())
    # A range that is a hundred times too narrow ruins what reads it, and nothing else.
    harmed = prepared.layers[1]
    reads = read_by(prepared, harmed.name)
    ranges = Ranges({**ranges.amax, reads: ranges.amax[reads] / 100}, ranges.bias_correction)
    inputs = reference_of(tiny_net(), pictures(16, seed=9))["embed/image"]
    feeds = [{"image": inputs[:8]}, {"image": inputs[8:]}]
    config = QuantizationConfig(placement="inputs")
    return tuple(graph_sensitivities(prepared, ranges, config, graph="embed", feeds=feeds))


def test_all_layers_of_a_model_are_measured_and_counted() -> None:
    graphs = {"embed": onnx_from_module(tiny_net(), GRAPH)}
    calibrated = calibrate(graphs, lambda _: iter(feeds_of(pictures(24))), config=QuantizationConfig())
    progress: list[tuple[int, int]] = []
    sensitivities = layer_sensitivities(
        calibrated,
        DEPLOYMENT,
        reference_of(tiny_net(), pictures(16, seed=9)),
        lambda done, total: progress.append((done, total)),
    )
    layers = [layer.name for layer in calibrated.graphs["embed"].prepared.layers]
    assert [(item.graph, item.layer) for item in sensitivities] == [("embed", layer) for layer in layers]
    assert progress == [(number, len(layers)) for number in range(1, len(layers) + 1)]
    assert all(0 < item.cosine_loss < 0.01 for item in sensitivities)


def test_the_layer_that_was_harmed_is_the_worst(measured: tuple[LayerSensitivity, ...]) -> None:
    assert [item.operator for item in measured] == ["Conv", "Conv", "Conv", "Gemm"]
    worst = max(measured, key=lambda item: item.cosine_loss)
    assert worst is measured[1]
    assert worst.cosine_loss > 0.05
    assert worst is min(measured, key=lambda item: item.sqnr_db)
    assert all(0 < item.cosine_loss < 0.01 and item.sqnr_db > 20 for item in measured if item is not worst)
    assert measured[1].weight == "model.depthwise.weight"
    assert measured[1].macs == 16 * 9 * 16 * 8


def test_table_and_chart_name_the_layers(measured: tuple[LayerSensitivity, ...]) -> None:
    worst = sorted(measured, key=lambda item: -item.cosine_loss)
    table = report.sensitivity_table(worst, top=2)
    assert len(table.splitlines()) == 4
    assert "model.depthwise.weight" in table.splitlines()[2]
    chart = ET.fromstring(report.sensitivity_chart("tiny <net>", worst))  # noqa: S314 - our own text
    texts = [element.text for element in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert any(text and "tiny <net>" in text for text in texts)
    labels = [text for text in texts if text in {item.weight for item in worst}]
    assert labels == [item.weight for item in worst]


def test_bars_are_as_long_as_their_values() -> None:
    figure = bar_chart("title", [("worst", 0.5, "5e-1"), ("best_$1", 0.125, "1e-1")])
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.125]
    assert axes.yaxis_inverted(), "the first bar is at the top"
    assert "best_$1" in svg_text(figure)


def test_report_command(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "entry", lambda _: tiny_entry())
    arguments = ["--model", "tiny", "--calibration-data", str(folder), "--output", str(tmp_path / "made" / "tiny")]
    assert report.main(arguments) == 0
    output, errors = capsys.readouterr()
    assert output.startswith("layer")
    assert "4 layers, each alone in INT8" in errors
    data = json.loads((tmp_path / "made" / "tiny.json").read_text())
    assert len(data) == 4
    assert (tmp_path / "made" / "tiny.svg").read_text().count("<svg") == 1
    assert report.main([*arguments, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert report.main(["--model", "tiny", "--calibration-data", "nowhere", "--quiet"]) == 1
    assert capsys.readouterr().err == (
        "error: the calibration data nowhere does not exist; allowed: a folder of images, or a .zip of them\n"
    )


# --- the search


@given(st.integers(0, 300), st.integers(0, 300))
def test_search_finds_about_the_fewest_layers_with_few_measurements(total: int, needed: int) -> None:
    order = [str(number) for number in range(total)]
    asked: list[int] = []

    def measure(excluded: frozenset[str]) -> float:
        asked.append(len(excluded))
        assert excluded == set(order[: len(excluded)])
        return 0.0 if len(excluded) >= needed else 0.5

    found = fewest_exclusions(lambda: order, measure, max_drop=0.1)
    assert found.trials == len(asked) == len(set(asked)) <= 10
    assert len(found.layers) in asked
    if found.holds:
        assert needed <= len(found.layers) <= needed + max(1, round(total / 32))
    else:
        assert needed > round(7 / 8 * total)
        assert found.drop == 0.5


def test_search_that_finds_nothing_returns_what_lost_the_least() -> None:
    found = fewest_exclusions(lambda: "abcd", lambda excluded: 0.9 if len(excluded) != 2 else 0.3, max_drop=0.1)
    assert (found.layers, found.drop, found.holds) == (("a", "b"), 0.3, False)


def test_layers_that_go_first_go_together_and_others_only_if_they_must() -> None:
    needed = {"b", "d"}

    def measure(excluded: frozenset[str]) -> float:
        return len(needed - excluded) / 10

    def unasked() -> str:
        raise AssertionError("the order is measured, which takes minutes")

    found = fewest_exclusions(unasked, measure, max_drop=0.0, first="bd", naive_drop=0.2)
    assert (found.layers, found.drop, found.holds, found.trials) == (("b", "d"), 0.0, True, 2)
    assert fewest_exclusions(unasked, measure, max_drop=0.2, first="bd").layers == ()
    beyond = fewest_exclusions(lambda: "dabc", measure, max_drop=0.0, first="ca")
    assert (beyond.layers, beyond.holds) == (("c", "a", "d", "b"), True)


@needs_openvino
def test_a_ruined_layer_goes_back_to_float(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole build: a layer whose range is wrong is found, put back, and the manifest says so."""
    measure = quantization.measure_ranges

    def wrong(prepared: Prepared, *rest: object) -> Ranges:
        ranges = measure(prepared, *rest)  # type: ignore[arg-type]
        reads = read_by(prepared, prepared.layers[1].name)
        return Ranges({**ranges.amax, reads: ranges.amax[reads] / 100}, ranges.bias_correction)

    monkeypatch.setattr("calibration.search.calibrate.measure_ranges", wrong)
    request = BuildRequest(tiny_entry(), tmp_path / "tiny.edgevis", calibration_data=folder)
    manifest = build_bundle(request, Recorder()).manifest
    assert manifest.calibration is not None
    searches = {item.backend: item for item in manifest.calibration.searches}
    assert set(searches) == {"onnxruntime", "openvino"}
    for item in searches.values():
        assert item.holds
        assert item.naive_drop > 0.05
        assert item.drop <= item.max_drop == 0.005
        assert any(name.startswith("embed/") for name in item.float_layers)
        assert item.layers == 4
        assert item.latency_ms
    assert Manifest.loads(manifest.dumps()) == manifest


@needs_openvino
def test_max_drop_of_one_puts_nothing_back(folder: Path, tmp_path: Path) -> None:
    request = BuildRequest(
        tiny_entry(), tmp_path / "tiny.edgevis", precisions=("int8",), calibration_data=folder, max_drop=1.0
    )
    calibration = build_bundle(request, Recorder()).manifest.calibration
    assert calibration is not None
    assert all((item.float_layers, item.trials) == ((), 1) for item in calibration.searches)


# --- candidates


def record(name: str, precision: str, latency_ms: float, agreement: float = 1.0) -> EngineRecord:
    proof = ParityReport(
        True,
        "",
        "",
        (GraphParity("embed", (1,), 0.0, 1.0, 0.999),),
        Decisions("rank-1 agreement", agreement, 64, 0.999),
    )
    files = {"embed": "graphs/embed.onnx"}
    return EngineRecord(name, precision, "cpu", files, latency_ms, proof)  # type: ignore[arg-type]


def test_the_fastest_that_passes_is_kept_and_a_float_one() -> None:
    made = [
        record("a", "fp32", 4.0),
        record("b", "fp32", 3.0),
        record("b", "bf16", 1.0, agreement=0.9),
        record("a", "int8", 2.0),
        record("b", "int8", 5.0),
        record("c", "int8", 0.1),
    ]
    proved = [item for item in made if item.name != "c-int8"]
    found = candidates_of(made, proved, unopened={"c-int8": "no device"}, max_drop=0.01, choose=True)
    assert [(item.engine, item.verdict, item.in_bundle) for item in found] == [
        ("b-bf16", "loses more than 0.01", False),
        ("a-int8", FASTEST, True),
        ("b-fp32", PASSES, True),
        ("a-fp32", PASSES, False),
        ("b-int8", PASSES, False),
        ("c-int8", "cannot run here: no device", False),
    ]
    assert summary_text(found) == ""
    assert "0.1000" in candidates_table(found)
    assert all(item.in_bundle for item in candidates_of(proved, proved, unopened={}, max_drop=0.01, choose=False))


def test_what_became_of_int8_is_said() -> None:
    def said(*made: EngineRecord) -> str:
        return summary_text(candidates_of(made, made, unopened={}, max_drop=0.01, choose=False))

    fp32, slow = record("a", "fp32", 4.0), record("a", "int8", 9.0)
    assert said(fp32) == ""
    assert said(fp32, slow) == "INT8 passes, and is not the fastest here; the fastest that passes is a-fp32, 4.00 ms"
    bad = record("a", "int8", 1.0, agreement=0.5)
    assert said(fp32, bad) == "no INT8 engine passes; the fastest that passes is a-fp32, 4.00 ms"
    assert bad.parity is not None
    assert drop_of_parity(bad.parity) == 0.5


@needs_openvino
def test_precision_auto(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "entry", lambda _: tiny_entry())
    output = tmp_path / "tiny.edgevis"
    arguments = ["--model", "tiny", "--precision", "auto", "--calibration-data", str(folder), "--no-cache"]
    assert main([*arguments, "--output", str(output)]) == 0
    text = capsys.readouterr().out
    manifest = Manifest.loads((output / "manifest.json").read_bytes())
    assert {item.engine for item in manifest.candidates} == {
        *("onnxruntime-fp32", "openvino-fp32", "openvino-bf16", "onnxruntime-int8", "openvino-int8")
    }
    kept = {item.engine for item in manifest.candidates if item.in_bundle}
    assert {engine.name for engine in manifest.engines} == kept
    assert 1 <= len(kept) <= 2
    assert any(engine.precision == "fp32" for engine in manifest.engines)
    measured = [item for item in manifest.candidates if item.drop is not None]
    best = next(item for item in measured if item.verdict == FASTEST)
    assert best.in_bundle
    assert all(item.latency_ms >= best.latency_ms for item in measured if item.verdict == PASSES)  # type: ignore[operator]
    assert all(item.engine in text and item.verdict in text for item in measured)
    files = {path.relative_to(output).parts[1] for path in (output / "engines").rglob("*") if path.is_file()}
    assert files <= {engine.name for engine in manifest.engines} | {"openvino-fp32"}


# --- the linter, through the build


@needs_openvino
@pytest.mark.parametrize(
    ("kind", "message"), [("uint8", "it works on UINT8"), ("zero point", r"its zero point is \[3\]")]
)
def test_a_broken_graph_fails_the_build_and_names_the_node(
    kind: str, message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def broken(*arguments: Any, **options: Any) -> ir.Model:
        model = with_qdq(*arguments, **options)
        node = next((node for node in model.graph if node.op_type == "QuantizeLinear"), None)
        if node is not None:
            names.append(node.name or "")
            zero_point = node.inputs[2]
            assert zero_point is not None
            zero_point.const_value = ir.Tensor(np.array(0, np.uint8) if kind == "uint8" else np.array(3, np.int8))
        return model

    monkeypatch.setattr("calibration.quantize.graph.with_qdq", broken)
    request = BuildRequest(tiny_entry(), tmp_path / "tiny.edgevis", calibration_data=folder)
    with pytest.raises(ExportError, match=message) as caught:
        build_bundle(request, Recorder())
    assert f"node {names[0]!r} (QuantizeLinear)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
