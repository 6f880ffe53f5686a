"""What an engine gave when it was built binds it: the distance, the interval, the record of a bundle."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord, OutputRecord, OutputsRecord
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.common.arrays import write_arrays
from runtime.common.machine import environment, machine_name
from runtime.errors import IntegrityError
from runtime.parity.compare import mask_agreement, nearest_agreement
from runtime.parity.recorded import FILE, allowed, deviations, difference, held_to_text, read_recorded
from runtime.predictor import Predictor
from runtime.sessions.open import open_graphs, open_sessions
from runtime.verification.verify import verify_bundle

from bundles import (
    ORT,
    Tiny,
    TinyEngine,
    edited_manifest,
    ir_from_onnx,
    needs_openvino,
    replace_file,
    write_tiny_bundle,
)
from logs import logged_warnings

INT8 = TinyEngine(precision="int8", latency_ms=0.5)


def with_record(
    path: Path, *, scale: float = 1.0, kernels: float = 0.01, same: bool = True, rows: int | None = None
) -> Bundle:
    """A tiny bundle whose INT8 engine has a record, of outputs that are ``scale`` times what it gives."""
    write_tiny_bundle(path, Tiny(engines=[replace(ORT, latency_ms=9.0), INT8]))
    bundle = Bundle(path)
    record = bundle.manifest.engines[1]
    sessions = open_sessions(bundle, record, threads=None)
    given = sessions["embed"].run({"image": bundle.golden()["embed/image"][:4]})["embedding"][:rows]
    sessions["embed"].close()
    write_arrays(path / FILE, {f"{record.name}/embed/embedding": given * np.float32(scale)})
    with edited_manifest(path) as data:
        data["engines"][1]["recorded"] = {
            "engine": record.name,
            "environment": environment("onnxruntime") if same else {"processor": "another"},
            "outputs": [{"output": "embed/embedding", "variation": 0.0, "kernels": kernels}],
        }
        data["files"][FILE] = {"size_bytes": 0, "sha256": "0" * 64}
    replace_file(path, FILE, (path / FILE).read_bytes())
    return Bundle(path)


def test_difference_is_relative_and_counts_all_rows_alike() -> None:
    rows = np.array([[3.0, 4.0], [30.0, 40.0]], np.float32)
    assert difference(rows, rows) == 0.0
    assert difference(rows, rows * 1.01) == pytest.approx(0.01, rel=1e-3)
    assert difference(rows, rows * [[1.01], [1.0]]) == pytest.approx(0.01 / math.sqrt(2), rel=1e-3)
    assert difference(rows, rows[:1]) == math.inf
    assert difference(rows, rows * np.nan) == math.inf
    assert difference(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)) == 0.0
    assert difference(np.zeros((2, 2), np.float32), rows) > 1e6


def test_a_few_flipped_elements_are_left_out_and_a_fault_of_all_is_not() -> None:
    expected = np.random.default_rng(0).normal(size=(2, 1, 20, 20)).astype(np.float32)
    flipped = expected.copy()
    flipped[0, 0, 3, 3:7] += 10
    assert difference(expected, flipped) > 0.3
    assert difference(expected, flipped, flipped=4 / 800) == 0.0
    assert difference(expected, flipped, flipped=2 / 800) > 0.3
    assert difference(expected, flipped * 1.1, flipped=4 / 800) == pytest.approx(0.1, rel=0.05)
    flipped[1, 0, 0, 0] = np.nan
    assert difference(expected, flipped, flipped=0.009) == math.inf


def test_a_cosine_and_a_difference_say_the_same_of_a_turn() -> None:
    angle = 0.02
    turned = np.array([[math.cos(angle), math.sin(angle)]])
    assert difference(np.array([[1.0, 0.0]]), turned) == pytest.approx(math.sqrt(2 - 2 * math.cos(angle)))


def test_other_kernels_may_differ_by_more_than_the_same_ones() -> None:
    record = OutputRecord("embed/embedding", variation=0.001, kernels=0.02)
    same, other = (allowed(record, same_kernels=flag) for flag in (True, False))
    assert record.variation < same < record.kernels < other


@pytest.mark.parametrize(
    ("scale", "same", "status"),
    [
        (1.0, True, "passed"),
        (1.0, False, "passed"),
        (1.01, True, "failed"),
        (1.01, False, "passed"),
        (1.1, False, "failed"),
    ],
)
def test_verify_holds_an_engine_to_its_record(tmp_path: Path, scale: float, same: bool, status: str) -> None:
    """An engine that is off by one part in a hundred is within the tolerance of INT8."""
    bundle = with_record(tmp_path / "x.edgevis", scale=scale, same=same)
    check = verify_bundle(bundle)[1]
    assert check.status == status, check.reason
    assert (", within" in check.reason or "lie within" in check.reason) == (status == "failed")
    assert check.recorded[0].difference == pytest.approx(abs(1 - 1 / scale), abs=1e-4)


def test_without_a_record_verify_says_what_it_could_not_hold_the_engine_to(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "x.edgevis", Tiny(engines=[ORT, INT8]))
    checks = verify_bundle(Bundle(tmp_path / "x.edgevis"))
    assert [check.status for check in checks] == ["passed", "passed"]
    assert not checks[0].reason
    assert "older edgevis" in checks[1].reason


def test_fewer_recorded_rows_than_golden_ones(tmp_path: Path) -> None:
    bundle = with_record(tmp_path / "x.edgevis", rows=2)
    assert verify_bundle(bundle)[1].status == "passed"


def test_more_recorded_rows_than_golden_ones(tmp_path: Path) -> None:
    bundle = with_record(tmp_path / "x.edgevis")
    record = bundle.manifest.engines[1]
    sessions = open_sessions(bundle, record, threads=None)
    golden = {name: array[:2] for name, array in bundle.golden().items()}
    recorded = read_recorded(bundle, record)
    assert recorded is not None
    with pytest.raises(IntegrityError, match="more rows than golden"):
        deviations(record, sessions, golden, recorded)
    sessions["embed"].close()


def test_a_record_without_its_arrays(tmp_path: Path) -> None:
    bundle = with_record(tmp_path / "x.edgevis")
    write_arrays(tmp_path / "other.npz", {"openvino-int8/embed/embedding": np.zeros((1, 2), np.float32)})
    replace_file(bundle.path, FILE, (tmp_path / "other.npz").read_bytes())
    with pytest.raises(IntegrityError, match="has no array onnxruntime-int8/embed/embedding"):
        verify_bundle(Bundle(bundle.path))


def test_the_faster_engine_is_passed_over_where_it_gives_something_else(tmp_path: Path) -> None:
    with Predictor(with_record(tmp_path / "right.edgevis").path) as predictor:
        assert predictor.info.precision == "int8"
    wrong = with_record(tmp_path / "wrong.edgevis", scale=1.5).path
    with logged_warnings(match="does not give here"):
        predictor = Predictor(wrong)
    with predictor:
        assert predictor.info.precision == "fp32"
        assert any("does not give here" in text for text in predictor.info.skipped)
    with logged_warnings(match="does not give here"):
        predictor = Predictor(wrong, precision="int8")
    with predictor:
        assert predictor.info.precision == "int8"


def test_held_to_text_names_what_binds() -> None:
    record = EngineRecord("onnxruntime", "int8", "cpu", {"embed": "x"})
    assert held_to_text(record) == "mean cosine >= 0.95"
    recorded = OutputsRecord("onnxruntime-int8", {}, (OutputRecord("embed/embedding", 0.0, 0.02),))
    assert held_to_text(replace(record, recorded=recorded)) == "recorded outputs within 4.0e-02"


def test_an_environment_names_the_processor_and_follows_what_limits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    before = environment("onnxruntime")
    assert before["processor"] == machine_name()
    assert before["package"].startswith("onnxruntime")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert environment("onnxruntime") != before


# --- measures that cannot fail


def test_neighbours_among_images_that_are_all_alike_say_nothing() -> None:
    random = np.random.default_rng(0)
    apart = random.standard_normal((32, 16))
    alike = np.ones((32, 16)) + 1e-3 * random.standard_normal((32, 16))
    assert nearest_agreement(apart, apart).measurable
    wrong = nearest_agreement(alike, random.permutation(alike))
    assert wrong.agreement == 1.0
    assert wrong.chance == pytest.approx(1.0)
    assert not wrong.measurable


def test_masks_that_are_all_the_same_say_nothing() -> None:
    random = np.random.default_rng(0)
    apart = random.standard_normal((6, 2, 8, 8)).astype(np.float32)
    assert mask_agreement(apart, apart).measurable
    empty = -np.ones((6, 2, 8, 8), np.float32)
    assert mask_agreement(empty, empty).chance == 1.0
    assert not mask_agreement(empty, empty).measurable


# --- one image, whatever is beside it


@needs_openvino
def test_openvino_in_int8_gives_an_image_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    """With a fixed batch OpenVINO fuses what lies between the layers; rounded in other places, images differed."""
    source = tmp_path / "embed.onnx"
    source.write_bytes(gated_int8_onnx(layers=8).SerializeToString())
    graph = Graph(
        "embed",
        (TensorSpec("image", "float32", ("N", 3, 32, 16)),),
        (TensorSpec("embedding", "float32", ("N", 16)),),
    )
    record = EngineRecord("openvino", "int8", "cpu", {"embed": ir_from_onnx(source).name})
    deployment = Deployment("reid", (graph,), Preprocess(32, 16), max_batch=64)
    sessions = open_graphs(record, deployment, lambda name: tmp_path / name, threads=None)
    images = np.random.default_rng(0).standard_normal((60, 3, 32, 16)).astype(np.float32)
    together = sessions["embed"].run({"image": images})["embedding"]
    alone = np.concatenate([sessions["embed"].run({"image": image[None]})["embedding"] for image in images])
    sessions["embed"].close()
    assert np.abs(together - alone).max() < 2e-5 * np.abs(together).max()


def gated_int8_onnx(*, layers: int) -> Any:
    """Convolutions in INT8 with a gate and a sum between two of them, as squeeze-and-excitation and residuals have."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes: list[Any] = []
    arrays: dict[str, Any] = {"zero": np.int8(0), "zeros": np.zeros(16, np.int8)}
    value, channels = "image", 3
    for index in range(layers):
        weight = random.standard_normal((16, channels, 3, 3)).astype(np.float32) / np.sqrt(9 * channels)
        scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        arrays |= {
            f"step{index}": np.float32(0.05 if index else 0.031),
            f"scale{index}": scale,
            f"weight{index}": np.round(weight / scale[:, None, None, None]).astype(np.int8),
            f"bias{index}": (0.3 * random.standard_normal(16)).astype(np.float32),
        }
        nodes += [
            helper.make_node("QuantizeLinear", [value, f"step{index}", "zero"], [f"q{index}"]),
            helper.make_node("DequantizeLinear", [f"q{index}", f"step{index}", "zero"], [f"d{index}"]),
            helper.make_node("DequantizeLinear", [f"weight{index}", f"scale{index}", "zeros"], [f"w{index}"], axis=0),
            helper.make_node("Conv", [f"d{index}", f"w{index}", f"bias{index}"], [f"conv{index}"], pads=[1] * 4),
        ]
        made = f"conv{index}"
        if index:
            nodes += [
                helper.make_node("Sigmoid", [made], [f"gate{index}"]),
                helper.make_node("Mul", [f"gate{index}", value], [f"gated{index}"]),
                helper.make_node("Add", [f"gated{index}", made], [f"sum{index}"]),
            ]
            made = f"sum{index}"
        nodes.append(helper.make_node("Relu", [made], [f"relu{index}"]))
        value, channels = f"relu{index}", 16
    nodes += [
        helper.make_node("GlobalAveragePool", [value], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "gated",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 16])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return model
