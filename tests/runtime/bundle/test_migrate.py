"""Manifests of schema 1, as edgevis wrote them before 0.2.0, are read under today's field names, checked as written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgevis.cli import main
from runtime.bundle.bundle import MANIFEST, Bundle
from runtime.bundle.identity import DIGEST, manifest_digest
from runtime.bundle.manifest import SCHEMA, Candidate, Int8Search, Manifest
from runtime.errors import IntegrityError, SchemaError
from runtime.predictor import Predictor

from bundles import Tiny, TinyEngine, picture, write_tiny_bundle

# Written by edgevis at schema 1, with every optional field filled.
SCHEMA_1_TEXT = """
{"name": "tiny", "model": "tiny", "target": "cpu", "deployment": {"task": "reid",
"graphs": [{"name": "embed", "inputs": [{"name": "image", "dtype": "float32", "shape": ["N", 3, 32, 16]}],
"outputs": [{"name": "embedding", "dtype": "float32", "shape": ["N", 8]}], "max_flipped": 0.0}],
"preprocess": {"height": 32, "width": 16, "color": "RGB", "scale": 0.00392156862745098, "mean": [0.5, 0.45,
0.4], "std": [0.25, 0.3, 0.35], "fit": "stretch", "interpolation": "linear", "pad_value": 114},
"postprocess": {}, "max_batch": 4},
"encoder_identity": "5876035276a65d54176d04f40bd50dfde0de8a48387c3980598d8d52d08a638b",
"weights": {"trained": false, "source": "seeded random numbers",
"sha256": "02c1f01c6ded7ee5028c92d783bdf8858f3dbbfbd59014c584d50957766ccb9f"}, "parameters": 296,
"engines": [{"backend": "onnxruntime", "precision": "fp32", "device": "cpu",
"files": {"embed": "engines/onnxruntime-fp32/embed.onnx"}, "latency_ms": 1.0, "proof": {"passed": true,
"tolerance": "cosine >= 0.99999", "machine": "the machine of the tests", "graphs": [{"graph": "embed",
"batch_sizes": [1, 2, 5], "max_relative_error": 1e-07, "min_cosine": 1.0, "mean_cosine": 1.0,
"flipped": 0.0}], "decisions": {"metric": "rank-1 agreement", "agreement": 1.0, "count": 5,
"mean_cosine": 1.0, "chance": 0.0}}, "graph_proof": null, "shares_enrolments": true, "recorded": null},
{"backend": "onnxruntime", "precision": "int8", "device": "cpu",
"files": {"embed": "engines/onnxruntime-int8/embed.onnx"}, "latency_ms": null, "proof": null,
"graph_proof": {"passed": true, "tolerance": "cosine >= 0.99999",
"machine": "ONNX Runtime on the machine of the tests", "graphs": [{"graph": "embed", "batch_sizes": [1, 2,
5], "max_relative_error": 1e-07, "min_cosine": 1.0, "mean_cosine": 1.0, "flipped": 0.0}],
"decisions": null}, "shares_enrolments": true, "recorded": {"engine": "onnxruntime-int8",
"environment": {"cpu": "x86"}, "outputs": [{"output": "embed/embedding", "variation": 0.001,
"kernels": 0.002}]}}], "files": {"engines/onnxruntime-fp32/embed.onnx": {"size_bytes": 29062,
"sha256": "7d98a95e12d3c951a1e56b52fe335207b32a88b59f5ab8cac2fcdae3bdc263f7"},
"engines/onnxruntime-int8/embed.onnx": {"size_bytes": 29062,
"sha256": "7d98a95e12d3c951a1e56b52fe335207b32a88b59f5ab8cac2fcdae3bdc263f7"}}, "labels": [],
"calibration": {"digest": "abababababababababababababababababababababababababababababababab", "images": 64,
"source": "made in code", "recipe": "min-max", "by_rule": 3, "searches": [{"backend": "onnxruntime",
"placement": "inputs", "measured_with": "onnxruntime", "max_drop": 0.01, "drop": 0.002, "naive_drop": 0.05,
"latency_ms": 0.4, "naive_latency_ms": 0.3, "layers": 4, "kept_float": ["embed/Conv_0"], "trials": 5}]},
"candidates": [{"engine": "onnxruntime-int8", "latency_ms": 0.4, "drop": 0.002, "verdict": "fastest",
"kept": true}, {"engine": "onnxruntime-fp32", "latency_ms": 1.0, "drop": null, "verdict": "passes",
"kept": false}], "options": {}, "tools": {"numpy": "2.0.0"}, "machine": "the machine of the tests",
"created": "2026-01-01T00:00:00Z", "schema": 1,
"digest": "8d25647c574c0cd4fa3b33f55c5f4a879b357c3db5bde0a31c19edbad4bb113f"}
"""
OLD_NAMES = {
    "parity": "proof",
    "graph_parity": "graph_proof",
    "in_bundle": "kept",
    "algorithm": "recipe",
    "excluded_by_rule": "by_rule",
    "float_layers": "kept_float",
}


@pytest.fixture
def old() -> dict[str, Any]:
    return dict(json.loads(SCHEMA_1_TEXT))


def as_schema_1(bundle: Path) -> str:
    """Rewrite a bundle's manifest as edgevis wrote it at schema 1; returns its digest."""
    data = json.loads((bundle / MANIFEST).read_text())
    data["engines"] = [{OLD_NAMES.get(key, key): value for key, value in item.items()} for item in data["engines"]]
    data |= {"schema": 1, "labels": []}
    data[DIGEST] = manifest_digest(data)
    (bundle / MANIFEST).write_text(json.dumps(data))
    return str(data[DIGEST])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = write_tiny_bundle(tmp_path / "old.edgevis", Tiny(engines=[TinyEngine(), TinyEngine(precision="int8")]))
    as_schema_1(path)
    return path


def test_every_field_is_read(old: dict[str, Any]) -> None:
    manifest = Manifest.loads(SCHEMA_1_TEXT)
    fp32, int8 = manifest.engines
    assert fp32.parity is not None
    assert fp32.parity.decisions is not None
    assert fp32.holds_parity
    assert fp32.graph_parity is None
    assert int8.parity is None
    assert int8.graph_parity is not None
    assert int8.graph_parity.machine == "ONNX Runtime on the machine of the tests"
    assert int8.recorded is not None
    assert manifest.candidates == (
        Candidate("onnxruntime-int8", 0.4, 0.002, "fastest", in_bundle=True),
        Candidate("onnxruntime-fp32", 1.0, None, "passes", in_bundle=False),
    )
    assert manifest.calibration is not None
    assert (manifest.calibration.algorithm, manifest.calibration.excluded_by_rule) == ("min-max", 3)
    (search,) = manifest.calibration.searches
    assert search == Int8Search(
        "onnxruntime", "inputs", "onnxruntime", 0.01, 0.002, 0.05, 0.4, 0.3, 4, ("embed/Conv_0",), 5
    )
    assert manifest.digest == old[DIGEST] == manifest_digest(old)


def test_it_is_written_in_the_schema_of_today() -> None:
    manifest = Manifest.loads(SCHEMA_1_TEXT)
    written = json.loads(manifest.dumps())
    assert written["schema"] == manifest.schema == SCHEMA
    assert not set(OLD_NAMES.values()) & set(_keys(written))
    assert Manifest.loads(manifest.dumps()) == manifest
    assert written[DIGEST] != manifest.digest


@pytest.mark.parametrize("field", ["machine", "name", "target"])
def test_the_digest_is_checked_over_what_was_written(old: dict[str, Any], field: str) -> None:
    with pytest.raises(IntegrityError, match="has been altered since it was built"):
        Manifest.loads(json.dumps({**old, field: "another"}))


def test_a_renamed_field_that_was_altered_is_noticed(old: dict[str, Any]) -> None:
    old["engines"][0]["proof"]["passed"] = False
    with pytest.raises(IntegrityError, match="has been altered since it was built"):
        Manifest.loads(json.dumps(old))


def test_names_of_both_schemas_are_refused(old: dict[str, Any]) -> None:
    old["engines"][0]["parity"] = None
    with pytest.raises(SchemaError, match="schema 1 and the field 'parity' of schema 2"):
        Manifest.loads(json.dumps(old))


def test_what_cannot_be_migrated_is_refused_with_the_command_that_rebuilds(old: dict[str, Any]) -> None:
    old["labels"] = ["cat", "dog"]
    with pytest.raises(SchemaError, match=r"python -m export.build --model 'tiny' --target 'cpu'"):
        Manifest.loads(json.dumps(old))


@pytest.mark.parametrize("field", ["engines", "candidates", "calibration"])
@pytest.mark.parametrize("value", [None, 1, "x", [1], {"searches": 1}, [[]]])
def test_malformed_values_are_refused(old: dict[str, Any], field: str, value: object) -> None:
    old[field] = value
    old[DIGEST] = manifest_digest(old)
    if field == "calibration" and value is None:
        assert Manifest.loads(json.dumps(old)).calibration is None
        return
    with pytest.raises(SchemaError):
        Manifest.loads(json.dumps(old))


def test_the_bundle_runs_and_its_file_stays_as_it_is(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    digest = json.loads(before)[DIGEST]
    with Predictor(bundle, digest=digest) as predictor:
        predictor.enroll("a", [picture(0)])
        assert predictor.predict(picture(0)).label == "a"
        assert predictor.info.digest == digest
        assert predictor.info.parity is not None
    assert (bundle / MANIFEST).read_bytes() == before


def test_a_file_that_was_altered_is_noticed(bundle: Path) -> None:
    (bundle / "golden.npz").write_bytes((bundle / "golden.npz").read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="has been altered"):
        Bundle(bundle).verify_files()


def test_verify_and_info(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = Bundle(bundle).manifest.digest
    assert main(["verify", str(bundle), "--digest", digest, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [engine["status"] for engine in report["engines"]] == ["passed", "passed"]
    assert main(["info", str(bundle), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["manifest"]["engines"][0]["parity"]["passed"] is True
    assert shown["running"]["digest"] == digest
    with pytest.raises(IntegrityError):
        Bundle(bundle, digest="0" * 64)


def _keys(data: Any) -> set[str]:
    if isinstance(data, dict):
        return set(data) | {key for value in data.values() for key in _keys(value)}
    return {key for item in data for key in _keys(item)} if isinstance(data, list) else set()
