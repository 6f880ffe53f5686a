"""Rows in planes: every float32 comes back bit for bit, and no score is further off than the bound says."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runtime.errors import InputError
from runtime.gallery import kernels, store
from runtime.gallery.blocks import PlainVectors, multiply
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.kernels import Kernel
from runtime.gallery.packed import PackedVectors, gathered, packed
from runtime.gallery.queries import Queries, Query
from runtime.gallery.state import Scoring
from runtime.gallery.threads import cores, run_all

from bundles import Array
from python_processes import run_python, succeeded

RIGHT = [kernel for kernel in kernels.kernels() if kernels.is_exact(kernel)]
KERNEL = RIGHT[0]


def unit(seed: int, rows: int, dimension: int) -> Array:
    values = np.random.default_rng(seed).standard_normal((rows, dimension))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def sparse(seed: int, rows: int, dimension: int) -> Array:
    """As after a ReLU: half zeros, a few large values, many small ones."""
    random = np.random.default_rng(seed)
    values = np.maximum(random.standard_normal((rows, dimension)), 0) ** 4 + 1e-9
    values[random.random(values.shape) < 0.5] = 0
    values[:, 0] += 1e-3
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def check_bits(found: Array, expected: Array) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kernel", RIGHT, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("rows", [unit(0, 700, 96), sparse(1, 700, 96), unit(2, 3, 2), np.eye(5, dtype=np.float32)])
def test_rows_come_back_bit_for_bit(rows: Array, kernel: Kernel) -> None:
    found = packed(rows, kernel)
    check_bits(found.all(), rows)
    offsets = np.random.default_rng(0).permutation(len(rows))[: len(rows) // 2]
    check_bits(found.take(offsets), rows[offsets])
    check_bits(found.keep(np.sort(offsets)).all(), rows[np.sort(offsets)])
    check_bits(found.joined(packed(rows[::-1], kernel)).all(), np.concatenate([rows, rows[::-1]]))
    check_bits(found.joined(PlainVectors(rows[:1])).all(), np.concatenate([rows, rows[:1]]))
    check_bits(gathered([(found, offsets), (found, offsets[:1])]).all(), rows[[*offsets, *offsets[:1]]])


@given(
    arrays.arrays(
        np.float32,
        (4, 16),
        elements=st.floats(-1, 1, width=32) | st.sampled_from([0.0, -0.0, 2.0**-126]),
    )
)
@settings(max_examples=300)
def test_whatever_numbers_come_back_bit_for_bit(values: Array) -> None:
    values[:, 3] = np.where(np.abs(values).max(axis=1) < 0.05, np.float32(0.9), values[:, 3])
    check_bits(packed(values, KERNEL).all(), values)


@given(seed=st.integers(0, 1 << 30), exponent=st.integers(-30, 0))
@settings(max_examples=200)
def test_numbers_at_the_edges_of_their_steps(seed: int, exponent: int) -> None:
    """Right between two steps and at powers of two, where the high bits are hardest to tell."""
    random = np.random.default_rng(seed)
    peak = np.float32(random.uniform(0.1, 1))
    steps = peak / np.float32(127) * np.float32(1 / 256)
    halves = (random.integers(-40, 32500, 60) * random.choice([1, -1], 60) + 0.5) * steps
    values = np.concatenate([[peak], halves, 2.0**exponent * np.array([1, -1, 1 - 2**-24, 1 + 2**-23])])
    values = np.clip(values, -peak, peak).astype(np.float32)
    check_bits(packed(values[None], KERNEL).all(), values[None])


def test_rows_take_little_more_than_float32() -> None:
    rows = unit(0, 1000, 512)
    rectified = np.maximum(rows, 0) * np.float32(2**0.5)
    for some, most in ((rows, 1.02), (rectified, 1.02), (sparse(0, 1000, 512), 1.3)):
        assert packed(some, KERNEL).nbytes < most * some.nbytes


@pytest.mark.parametrize("kernel", RIGHT, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("count", [1, 8, 9, 40])
@pytest.mark.parametrize("make", [unit, sparse])
def test_scores_are_within_their_bounds(kernel: Kernel, count: int, make: object) -> None:
    rows = make(3, 600, 128)  # type: ignore[operator]
    queries = make(4, count, 128) * np.float32(1.5)  # type: ignore[operator]
    queries[-1] = 0
    expected = queries.astype(np.float64) @ rows.astype(np.float64).T
    both = Queries(queries)
    for vectors in (packed(rows, kernel), PlainVectors(rows)):
        found = np.empty((600, count), np.float32)
        vectors.scores(both, found)
        error = np.abs(found.T - expected).max(axis=1)
        assert (error <= vectors.bound(both)).all()
        assert vectors.bound(both).max() < 0.1
        for index in range(count):
            query = Query(both, index)
            for offsets in (np.arange(0, 600, 40), np.arange(600)):
                refined = vectors.refined(query, offsets)
                assert np.abs(refined - expected[index][offsets]).max() <= vectors.refined_bound(query)
                assert vectors.refined_bound(query) < 2e-3
    plain = np.empty((600, count), np.float32)
    multiply(queries, rows, plain)
    np.testing.assert_allclose(plain.T, expected, atol=1e-5)


def test_a_query_that_is_not_finite_harms_no_other() -> None:
    rows, queries = unit(1, 50, 16), unit(2, 3, 16)
    queries[1] = np.nan
    found = np.empty((50, 3), np.float32)
    packed(rows, KERNEL).scores(Queries(queries), found)
    np.testing.assert_allclose(found.T[[0, 2]], queries[[0, 2]] @ rows.T, atol=0.05)


def label_scores(queries: Array, groups: Array, scoring: Scoring) -> Array:
    """(B, L) float64 scores of queries with labels of (L, R, D) rows, by brute force."""
    nearest = np.einsum("bd,lrd->blr", queries, groups).max(axis=2)
    sums = groups.sum(axis=1, dtype=np.float64)
    prototype = queries @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T
    return {"nearest": nearest, "prototype": prototype, "blend": (nearest + prototype) / 2}[scoring]


@pytest.mark.parametrize("scoring", ["nearest", "prototype", "blend"])
@pytest.mark.parametrize("make", [unit, sparse])
def test_large_galleries_against_brute_force(scoring: Scoring, make: object) -> None:
    """Blocks of real size, of which some rows and labels are removed, and of which many rows are alike."""
    dimension = 24
    rows = make(5, 9000, dimension)  # type: ignore[operator]
    rows[3000:3600] = rows[3000]
    gallery = EmbeddedGallery(dimension, scoring)
    gallery.replace({f"{index}": rows[index * 3 : index * 3 + 3] for index in range(2000)})
    for index in range(2000, 3000):
        gallery.add(f"{index}", rows[index * 3 : index * 3 + 3])
    gone = set(range(900)) | {1500, 2999, 2500}
    for index in gone:
        gallery.remove(f"{index}")
    assert any(isinstance(block.vectors, PackedVectors) for block in gallery.state.blocks)
    queries = np.concatenate([make(6, 12, dimension), rows[3000:3001], rows[8999:]])  # type: ignore[operator]
    groups = rows.reshape(3000, 3, dimension).astype(np.float64)
    wide = queries.astype(np.float64)
    scores = label_scores(wide, groups, scoring).astype(np.float32)
    scores[:, sorted(gone)] = -np.inf
    for batch in (queries[:1], queries[:5], queries):
        for query, matches in zip(scores[: len(batch)], gallery.search(batch, 10), strict=True):
            expected = np.lexsort((np.arange(3000), -query))[:10]
            np.testing.assert_allclose([match.score for match in matches], query[expected], atol=1.2e-7)
            for match in matches:
                assert match.score == pytest.approx(query[int(match.label)], abs=1.2e-7)
    alone = [gallery.search(query[None], 10)[0] for query in queries]
    assert alone == gallery.search(queries, 10)  # to the bit, whatever else was asked at once


@pytest.mark.parametrize("scoring", ["nearest", "prototype", "blend"])
def test_few_labels_of_many_rows(scoring: Scoring) -> None:
    """All labels are asked for, of which each has thousands of rows."""
    groups = unit(8, 6000, 24).reshape(3, 2000, 24)
    groups[1, 5] = groups[1, 4]
    gallery = EmbeddedGallery(24, scoring)
    gallery.replace({f"{index}": rows for index, rows in enumerate(groups)})
    gallery.add("gone", groups[0, :1])
    gallery.remove("gone")
    queries = np.concatenate([unit(9, 4, 24), groups[1, 4:5]])
    wide = queries.astype(np.float64)
    scores = label_scores(wide, groups, scoring)
    for expected, matches in zip(scores, gallery.search(queries, 5), strict=True):
        assert [int(match.label) for match in matches] == np.argsort(-expected).tolist()
        np.testing.assert_allclose([match.score for match in matches], np.sort(expected)[::-1], atol=1.2e-7)


def test_large_galleries_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "best_kernel", lambda _: None)
    rows = unit(1, 5000, 16)
    gallery = EmbeddedGallery(16, "nearest")
    for index in range(0, 5000, 10):
        gallery.add(f"{index}", rows[index : index + 10])
    assert {type(block.vectors) for block in gallery.state.blocks} == {PlainVectors}
    for query, matches in zip(rows[::500], gallery.search(rows[::500], 1), strict=True):
        assert matches[0].score == pytest.approx(float(query @ query), abs=1e-6)
    assert [int(matches[0].label) for matches in gallery.search(rows[::500], 1)] == list(range(0, 5000, 500))


def test_kernels_by_name() -> None:
    with pytest.raises(InputError, match=r"kernel is 'mkl'; allowed: None or one that runs here: .*onnxruntime"):
        EmbeddedGallery(8, "nearest", kernel="mkl")
    rows = unit(1, 3000, 32)
    found = []
    for kernel in kernels.KERNELS:
        if kernels.best_kernel(kernel):
            gallery = EmbeddedGallery(32, "nearest", kernel=kernel)
            gallery.replace({f"{index}": row[None] for index, row in enumerate(rows)})
            found.append(gallery.search(unit(2, 20, 32), 5))
    assert all(matches == found[0] for matches in found)


def test_queries_that_are_not_finite_find_labels_without_a_score() -> None:
    gallery = EmbeddedGallery(4, "nearest")
    gallery.replace({name: unit(seed, 1, 4) for seed, name in enumerate("abc")})
    (matches,) = gallery.search(np.full((1, 4), np.nan, np.float32), 2)
    assert [match.label for match in matches] == ["a", "b"]
    assert all(np.isnan(match.score) for match in matches)


def test_a_kernel_that_saturates_is_not_right() -> None:
    def saturating(codes: Array, weights: Array) -> Array:
        return np.clip(codes.astype(np.int64) @ weights, -32768, 32767)

    assert not kernels.is_exact(Kernel("saturates", 0, saturating))
    assert kernels.is_exact(Kernel("exact", 0, lambda codes, weights: codes.astype(np.int64) @ weights))
    assert {kernel.name for kernel in kernels.kernels()} >= {"onnxruntime", "onnxruntime, uint8 weights"}
    assert kernels.best_kernel() is not None


@pytest.mark.skipif(not importlib.util.find_spec("onnx"), reason="the package onnx builds what is compared")
def test_the_serialised_models_are_what_they_are_said_to_be() -> None:
    from onnx import TensorProto, helper

    for data, kind, inputs in (
        (kernels._ONNX_INT8, TensorProto.INT8, ["codes", "weights", "zero"]),
        (kernels._ONNX_UINT8, TensorProto.UINT8, ["codes", "weights", "zero", "zero"]),
    ):
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", inputs, ["sums"])],
            "dot",
            [
                helper.make_tensor_value_info("codes", TensorProto.UINT8, ["N", "D"]),
                helper.make_tensor_value_info("weights", kind, ["D", "C"]),
            ],
            [helper.make_tensor_value_info("sums", TensorProto.INT32, ["N", "C"])],
            [helper.make_tensor("zero", TensorProto.UINT8, [], [128])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 10)], ir_version=5)
        assert model.SerializeToString() == data


def test_what_a_thread_raises_is_raised() -> None:
    done: list[int] = []

    def fail() -> None:
        raise MemoryError("none left")

    with pytest.raises(MemoryError, match="none left"):
        run_all([lambda: done.append(1), fail, lambda: done.append(2)], threads=3)
    assert sorted(done) == [1, 2]
    assert cores() >= 1


_FORKED = """
import os, sys
import numpy as np
from runtime.gallery.embedded import EmbeddedGallery
rows = np.random.default_rng(0).standard_normal((20000, 512), np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
gallery = EmbeddedGallery(512, "nearest", kernel=sys.argv[1])
gallery.replace({str(index): row[None] for index, row in enumerate(rows)})
before = gallery.search(rows[:40], 3)
child = os.fork()
if not child:
    gallery.add("new", rows[:1])
    os._exit(0 if gallery.search(rows[1:40], 3) == before[1:] else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), gallery.search(rows[:40], 3) == before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("kernel", [name for name in kernels.KERNELS if kernels.best_kernel(name)])
def test_a_forked_process_searches(kernel: str) -> None:
    assert succeeded(run_python(_FORKED, kernel)) == "0 True"
