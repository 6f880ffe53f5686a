"""The measures of parity against hand-computed values, and the proof of a whole bundle on this machine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import backends
from runtime.bundle.bundle import GOLDEN, Bundle
from runtime.bundle.engine_files import read_engine
from runtime.bundle.manifest import Decisions, GraphParity
from runtime.bundle.spec import Graph, TensorSpec
from runtime.common.arrays import write_arrays
from runtime.errors import IntegrityError
from runtime.parity.compare import (
    TOLERANCES,
    Tolerance,
    compare_rows,
    golden_feeds,
    mask_agreement,
    measure_graph,
    nearest_agreement,
    settle_flips,
)
from runtime.sessions.open import open_sessions
from runtime.sessions.session import Session
from runtime.verification.verify import NOT_RECORDED, verify_bundle

from bundles import (
    MATCH,
    ORT,
    Array,
    Tiny,
    TinyEngine,
    edited_manifest,
    float_onnx,
    match_onnx,
    needs_openvino,
    replace_file,
    tiny_weights,
    write_model,
    write_tiny_bundle,
)


def rows(*values: Any) -> Array:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("expected", "actual", "error", "cosine"),
    [
        (rows([3, 4]), rows([3, 4]), 0.0, 1.0),
        (rows([3, 4]), rows([3, 3]), 0.25, 21 / (5 * math.sqrt(18))),
        (rows([3, 4], [0, 2]), rows([3, 4], [0, 1]), 0.25, 1.0),
        (rows([3, 4], [0, 2]), rows([3, 4], [2, 0]), 0.5, 0.0),
        (rows([1, 0]), rows([-1, 0]), 2.0, -1.0),
        (rows([0, 0]), rows([0, 0]), 0.0, 1.0),
        (rows([[1, 2], [3, 4]]), rows([[1, 2], [3, 4]]), 0.0, 1.0),
    ],
)
def test_distance_of_rows(expected: Array, actual: Array, error: float, cosine: float) -> None:
    found_error, cosines = compare_rows(expected, actual)
    assert found_error == pytest.approx(error, abs=1e-12)
    assert cosines.shape == (len(expected),)
    assert cosines.min() == pytest.approx(cosine, abs=1e-12)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (rows([1, 2]), rows([1, math.nan])),
        (rows([1, 2], [3, 4]), rows([1, 2], [math.inf, 4])),
        (rows([1, 2]), rows([0, 0])),
        (rows([0, 0]), rows([1, 0])),
        (rows([1, 2]), rows([1, 2, 0])),
        (rows([1, 2]), rows([1, 2], [1, 2])),
        (rows([1, 2]), rows([1, 2.01])),
    ],
)
@pytest.mark.parametrize("precision", TOLERANCES)
def test_what_no_tolerance_or_not_that_of_fp32_may_pass(expected: Array, actual: Array, precision: Any) -> None:
    error, cosines = compare_rows(expected, actual)
    parity = GraphParity("embed", (1,), error, float(cosines.min()), float(cosines.mean()))
    held = TOLERANCES[precision].holds(parity)
    near = bool(np.array_equal(actual, rows([1, 2.01])))
    assert held == (near and precision != "fp32")


def test_tolerances_are_inclusive_and_can_be_read() -> None:
    tolerance = Tolerance(1e-4, 0.999, 0.9995)
    assert tolerance.holds(GraphParity("g", (1,), 1e-4, 0.999, 0.9995))
    assert not tolerance.holds(GraphParity("g", (1,), 1.1e-4, 1.0, 1.0))
    assert not tolerance.holds(GraphParity("g", (1,), 0.0, 0.998, 1.0))
    assert not tolerance.holds(GraphParity("g", (1,), 0.0, 0.999, 0.9994))
    assert str(tolerance) == "max relative error <= 0.0001, cosine >= 0.999, mean cosine >= 0.9995"
    assert str(Tolerance(mean_cosine=0.5)) == "mean cosine >= 0.5"


def test_rank_1_agreement() -> None:
    gallery = rows([1, 0, 0], [0, 1, 0], [0, 0, 1])
    queries = rows([9, 1, 0], [1, 9, 0], [0, 1, 9])
    reference = np.concatenate([gallery, queries])
    same = nearest_agreement(reference, 3 * reference)
    assert (same.agreement, same.count) == (1.0, 6)
    assert same.mean_cosine == pytest.approx(1.0)
    moved = reference.copy()
    moved[3] = [1, 9, 0]  # one image of six now finds another neighbour
    found = nearest_agreement(reference, moved)
    assert found.agreement == pytest.approx(5 / 6)
    assert found.mean_cosine == pytest.approx((5 + 18 / 82) / 6)


def test_rank_1_agreement_lets_ties_be() -> None:
    angles = np.deg2rad([0.0, 20.0, 20.1, 60.0])
    reference = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    turned = reference.copy()
    turned[0] = reference[1] + reference[2]  # of two equally near neighbours now the other one
    assert nearest_agreement(reference, turned).agreement == 1.0
    turned[0] = reference[3]
    assert nearest_agreement(reference, turned).agreement == 0.75


# A graph on an engine


@pytest.fixture
def opened(tiny_bundle: Path) -> Iterator[tuple[Session, Graph, dict[str, Array]]]:
    bundle = Bundle(tiny_bundle)
    sessions = open_sessions(bundle, bundle.manifest.engines[0], threads=1)
    yield sessions["embed"], sessions["embed"].graph, bundle.golden()
    sessions["embed"].close()


def test_a_sound_engine_is_within_tolerance_at_every_batch_size(opened: Any) -> None:
    session, graph, golden = opened
    found, outputs = measure_graph(session, graph, golden)
    assert outputs["embedding"] == pytest.approx(golden["embed/embedding"], rel=1e-4, abs=1e-5)
    assert found.graph == "embed"
    assert found.batch_sizes == (1, 2, 5)  # 8 would need more golden images
    assert 0 < found.max_relative_error < 1e-5
    assert found.min_cosine > 0.999999
    assert TOLERANCES["fp32"].holds(found)


@pytest.mark.parametrize("row", range(5))
def test_every_golden_row_counts(opened: Any, row: int) -> None:
    session, graph, golden = opened
    golden["embed/embedding"][row] *= -1
    found, _ = measure_graph(session, graph, golden)
    assert found.min_cosine == pytest.approx(-1, abs=1e-6)
    assert found.mean_cosine == pytest.approx(0.6, abs=1e-5)


def test_nan_in_an_output_fails(opened: Any) -> None:
    session, graph, golden = opened
    golden["embed/image"][2, 0, 0, 0] = np.nan
    found, _ = measure_graph(session, graph, golden)
    assert math.isnan(found.max_relative_error)
    assert math.isnan(found.min_cosine)
    assert not any(tolerance.holds(found) for tolerance in TOLERANCES.values())


GOLDEN_LIES: dict[str, tuple[dict[str, Any], str]] = {
    "no input": ({"embed/image": None}, "has no array embed/image"),
    "no output": ({"embed/embedding": None}, "has no array embed/embedding"),
    "no rows": ({"embed/image": np.empty((0, 3, 32, 16), np.float32)}, r"embed/image is \(0, 3, 32, 16\) float32"),
    "doubles": ({"embed/image": np.zeros((5, 3, 32, 16))}, "float64, which does not fit the graph"),
    "another size": ({"embed/image": np.zeros((5, 3, 16, 16), np.float32)}, r"\(5, 3, 16, 16\)"),
    "a number": ({"embed/embedding": np.array(1, np.float32)}, r"embed/embedding is \(\) float32"),
    "another width": ({"embed/embedding": np.zeros((5, 7), np.float32)}, r"\(5, 7\)"),
    "fewer outputs": ({"embed/embedding": np.zeros((4, 8), np.float32)}, "does not fit the graph or the others"),
}


@pytest.mark.parametrize("lie", GOLDEN_LIES)
def test_golden_arrays_that_lie(tiny_bundle: Path, lie: str) -> None:
    changes, message = GOLDEN_LIES[lie]
    golden = {**Bundle(tiny_bundle).golden(), **changes}
    write_arrays(tiny_bundle / GOLDEN, {name: array for name, array in golden.items() if array is not None})
    replace_file(tiny_bundle, GOLDEN, (tiny_bundle / GOLDEN).read_bytes())
    with pytest.raises(IntegrityError, match=message):
        verify_bundle(Bundle(tiny_bundle))


def test_golden_inputs_without_a_batch_axis_are_given_whole() -> None:
    graph = Graph(
        "match",
        (TensorSpec("query", "float32", ("N", 4)), TensorSpec("support", "float32", ("K", 4))),
        (TensorSpec("scores", "float32", ("N", "K")),),
    )
    golden = {"match/query": np.ones((2, 4)), "match/support": np.ones((3, 4)), "match/scores": np.ones((2, 3))}
    inputs, outputs = golden_feeds({name: array.astype(np.float32) for name, array in golden.items()}, graph)
    assert {name: array.shape for name, array in {**inputs, **outputs}.items()} == {
        "query": (2, 4),
        "support": (3, 4),
        "scores": (2, 3),
    }


@pytest.mark.parametrize("rows_axis", ["N", "M"])
def test_what_is_no_batch_is_compared_as_a_whole(tmp_path: Path, rows_axis: str) -> None:
    """Support and total have no batch axis; with the axis named "M" nothing has one."""

    def named(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(item, shape=tuple(rows_axis if axis == "N" else axis for axis in item.shape)) for item in tensors
        )

    graph = Graph("match", named(MATCH.inputs), named(MATCH.outputs))
    file = write_model(tmp_path / "match.onnx", match_onnx(), "onnxruntime")
    engine = backends.load("onnxruntime").open_engine(read_engine(file), precision="fp32", device="cpu", threads=1)
    session = Session(engine, graph, max_batch=2)
    random = np.random.default_rng(0)
    query, weight, support = (random.standard_normal(shape) for shape in ((3, 4), (3,), (5, 4)))
    golden = {
        "match/query": query,
        "match/weight": weight,
        "match/support": support,
        "match/scores": (query * weight[:, None]) @ support.T,
        "match/total": support.sum(axis=0),
    }
    golden = {name: array.astype(np.float32) for name, array in golden.items()}
    found, outputs = measure_graph(session, graph, golden)
    assert {name: array.shape for name, array in outputs.items()} == {"scores": (3, 5), "total": (4,)}
    assert found.batch_sizes == ((1, 2) if rows_axis == "N" else (1,))
    assert found.max_relative_error < 1e-6
    golden["match/scores"][2] *= -1
    assert measure_graph(session, graph, golden)[0].min_cosine == pytest.approx(-1)
    session.close()


# A whole bundle


def engines() -> list[TinyEngine]:
    return [ORT, TinyEngine(precision="int8")]


def test_a_sound_bundle_proves_itself(tmp_path: Path) -> None:
    checks = verify_bundle(Bundle(write_tiny_bundle(tmp_path / "sound.edgevis", Tiny(engines=engines()))))
    assert [(check.engine, check.status, check.reason) for check in checks] == [
        ("onnxruntime-fp32", "passed", ""),
        ("onnxruntime-int8", "passed", NOT_RECORDED),
    ]
    assert checks[0].graphs[0].max_relative_error < 1e-5 < checks[1].graphs[0].max_relative_error


@needs_openvino
def test_openvino_proves_itself(tmp_path: Path) -> None:
    tiny = Tiny(engines=[TinyEngine("openvino"), TinyEngine("openvino", "int8")])
    checks = verify_bundle(Bundle(write_tiny_bundle(tmp_path / "sound.edgevis", tiny)))
    assert [check.status for check in checks] == ["passed", "passed"]


def test_one_changed_weight_fails_the_proof(tmp_path: Path) -> None:
    """The planted fault: every hash is right, one weight of the compiled engine is not."""
    bundle = write_tiny_bundle(tmp_path / "faulty.edgevis", Tiny(engines=engines()))
    weights = tiny_weights()
    dense = weights.dense.copy()
    dense[3, 4] += 0.01
    model = float_onnx(Tiny(weights=replace(weights, dense=dense)))
    replace_file(bundle, "engines/onnxruntime-fp32/embed.onnx", model.SerializeToString())
    fp32, int8 = verify_bundle(Bundle(bundle))
    assert (fp32.status, int8.status) == ("failed", "passed")
    assert "graph 'embed': max relative error " in fp32.reason
    assert fp32.tolerance == "max relative error <= 0.0001, cosine >= 0.99999"


def test_an_engine_that_does_not_open_fails_the_proof(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "broken.edgevis", Tiny(engines=engines()))
    replace_file(bundle, "engines/onnxruntime-int8/embed.onnx", b"no model")
    fp32, int8 = verify_bundle(Bundle(bundle))
    assert fp32.status == "passed"
    assert int8.status == "failed"
    assert "cannot open embed.onnx" in int8.reason


def test_an_engine_that_this_machine_cannot_run_is_not_run(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "npu.edgevis", Tiny(engines=engines()))
    with edited_manifest(bundle) as data:
        data["engines"][1]["device"] = "npu"
        data["engines"].append({**data["engines"][0], "backend": "abacus"})
    fp32, npu, abacus = verify_bundle(Bundle(bundle))
    assert fp32.status == "passed"
    assert (npu.status, npu.reason) == ("not run", "onnxruntime has no device 'npu' here; it has cpu")
    assert abacus.status == "not run"
    assert "there is no backend 'abacus'" in abacus.reason


def test_an_altered_file_is_no_proof_at_all(tiny_bundle: Path) -> None:
    (tiny_bundle / GOLDEN).write_bytes(b"altered")
    with pytest.raises(IntegrityError, match=r"golden\.npz' has 7 bytes"):
        verify_bundle(Bundle(tiny_bundle))


def test_flipped_elements_are_settled_as_far_as_they_may() -> None:
    random = np.random.default_rng(0)
    expected = random.standard_normal((4, 1000)).astype(np.float32)
    actual = expected + np.float32(1e-6)
    actual[0, 7], actual[3, 999] = 5.0, np.nan
    kept = actual.copy()
    settled, share = settle_flips(expected, actual, 2 / 4000)
    np.testing.assert_array_equal(actual, kept)
    assert share == 2 / 4000
    assert compare_rows(expected, settled)[0] < 1e-5
    for allowed in (0.1 / 4000, 1 / 4000):  # one in any case, the furthest first
        settled, share = settle_flips(expected, actual, allowed)
        assert share == 2 / 4000
        assert settled[3, 999] == expected[3, 999]
        assert settled[0, 7] == 5.0
    same, share = settle_flips(expected, expected, 0.001)
    assert share == 0
    np.testing.assert_array_equal(same, expected)
    assert settle_flips(expected, expected[:2], 0.001)[1] == 1.0


def test_masks_agree_by_their_overlap() -> None:
    logits = np.full((3, 1, 2, 4, 4), -1.0, np.float32)
    logits[:, :, 1, :2] = 1.0
    logits[:, :, 0] = 0.0
    other = logits.copy()
    other[0, 0, 1, 0] = -1.0  # half of the first mask is lost
    other[1, 0, 1] = -1.0  # all of the second
    found = mask_agreement(logits, other, mean_cosine=0.5)
    assert found == Decisions("mask IoU", (0.5 + 0.0 + 1.0) / 3, 3, 0.5, chance=1.0)
    empty = np.full((2, 3, 4, 4), -1.0, np.float32)
    assert mask_agreement(empty, empty).agreement == 1.0
    assert mask_agreement(empty, empty).count == 6
