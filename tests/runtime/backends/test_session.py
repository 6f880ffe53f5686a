"""What reaches an engine has been checked; large batches are run in chunks; resident inputs need not be given again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import backends
from runtime.backends import NO_ARRAYS, Engine
from runtime.bundle.engine_files import read_engine
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import EngineError, InputError
from runtime.sessions.session import Session

from bundles import MATCH, Array, match_onnx, write_model

MAX_BATCH = 4


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def file(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp(backend) / "match.onnx", match_onnx(), backend)


def open_engine(backend: str, file: Path) -> Engine:
    return backends.load(backend).open_engine(read_engine(file), precision="fp32", device="cpu", threads=1)


@pytest.fixture
def session(backend: str, file: Path) -> Iterator[Session]:
    opened = Session(open_engine(backend, file), MATCH, max_batch=MAX_BATCH)
    yield opened
    opened.close()


def feeds(rows: int = 3, support: int = 5) -> dict[str, Array]:
    random = np.random.default_rng(rows)
    return {
        "query": random.standard_normal((rows, 4)).astype(np.float32),
        "weight": random.random(rows).astype(np.float32) + 0.5,
        "support": random.standard_normal((support, 4)).astype(np.float32),
    }


def expected(inputs: dict[str, Array]) -> Array:
    wide = {name: array.astype(np.float64) for name, array in inputs.items()}
    return np.asarray((wide["query"] * wide["weight"][:, None]) @ wide["support"].T)


def assert_close(outputs: dict[str, Array], inputs: dict[str, Array]) -> None:
    assert set(outputs) == {"scores", "total"}
    # Sums of four or five float32 products of size one.
    np.testing.assert_allclose(outputs["scores"], expected(inputs), atol=1e-5)
    np.testing.assert_allclose(outputs["total"], inputs["support"].sum(axis=0, dtype=np.float64), atol=1e-5)


@pytest.mark.parametrize("rows", [*range(1, 2 * MAX_BATCH + 2), 23])
def test_any_batch_gives_what_its_rows_give_one_by_one(session: Session, rows: int) -> None:
    inputs = feeds(rows)
    together = session.run(inputs)
    assert together["scores"].shape == (rows, 5)
    assert_close(together, inputs)
    one_by_one = [
        session.run({**inputs, "query": inputs["query"][row : row + 1], "weight": inputs["weight"][row : row + 1]})
        for row in range(rows)
    ]
    np.testing.assert_allclose(together["scores"], np.concatenate([item["scores"] for item in one_by_one]), atol=1e-6)


class Recorded:
    """The real engine, and the number of rows that each of its runs got."""

    def __init__(self, engine: Engine) -> None:
        self.inputs, self.outputs, self.close = engine.inputs, engine.outputs, engine.close
        self.rows: list[int] = []
        self._engine = engine

    def run(self, feeds: Mapping[str, Array], resident: Mapping[str, Array] = NO_ARRAYS) -> dict[str, Array]:
        self.rows.append(len(feeds["query"]))
        return self._engine.run(feeds, resident)


@pytest.mark.parametrize(("rows", "runs"), [(1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (11, [4, 4, 3])])
def test_the_engine_gets_as_few_and_as_large_batches_as_it_allows(
    backend: str, file: Path, rows: int, runs: list[int]
) -> None:
    engine = Recorded(open_engine(backend, file))
    session = Session(engine, MATCH, max_batch=MAX_BATCH)
    assert_close(session.run(feeds(rows)), feeds(rows))
    assert engine.rows == runs
    session.close()


def test_only_the_batch_is_cut_into_chunks(session: Session) -> None:
    inputs = feeds(rows=2, support=3 * MAX_BATCH)
    assert session.run(inputs)["scores"].shape == (2, 3 * MAX_BATCH)
    assert_close(session.run(inputs), inputs)


def test_inputs_in_any_memory_layout(session: Session) -> None:
    inputs = feeds(3)
    strange = {
        "query": np.asfortranarray(inputs["query"]),
        "weight": np.repeat(inputs["weight"], 2)[::2],
        "support": inputs["support"][::-1],
    }
    for array in strange.values():
        array.flags.writeable = False
    assert not strange["query"].flags.c_contiguous
    assert_close(session.run(strange), {**inputs, "support": inputs["support"][::-1]})


def test_inputs_are_not_written_and_outputs_belong_to_the_caller(session: Session) -> None:
    first = feeds(3)
    kept_inputs = {name: array.copy() for name, array in first.items()}
    outputs = session.run(first)
    kept_outputs = {name: array.copy() for name, array in outputs.items()}
    for rows in (3, 1, 9):
        session.run(feeds(rows))
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept_inputs[name])
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, kept_outputs[name])
        array[...] = 0
    assert_close(session.run(first), kept_inputs)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"query": None}, "input 'query' is a NoneType; a NumPy array is needed"),
    ({"query": [[1.0, 2.0, 3.0, 4.0]]}, "input 'query' is a list; a NumPy array is needed"),
    ({"query": np.zeros((3, 4))}, r"has dtype float64; the graph takes float32: convert it with .astype\('float32'\)"),
    ({"query": np.zeros((3, 4), np.uint8)}, "has dtype uint8"),
    ({"query": np.zeros((3, 4), ">f4")}, "has dtype >f4"),
    ({"query": np.zeros((3, 4), object)}, "has dtype object"),
    ({"query": np.zeros(4, np.float32)}, r"shape \(4,\); the graph takes \(N, 4\); add a batch axis: array\[None\]"),
    ({"query": np.zeros((3, 5), np.float32)}, r"has shape \(3, 5\); the graph takes \(N, 4\)$"),
    ({"query": np.zeros((3, 4, 1), np.float32)}, r"has shape \(3, 4, 1\)"),
    ({"query": np.float32(1)}, "is a float32; a NumPy array is needed"),
    ({"query": np.zeros((), np.float32)}, r"has shape \(\)"),
    ({"query": np.zeros((0, 4), np.float32)}, "an empty batch cannot be run"),
    ({"support": np.zeros((0, 4), np.float32)}, "an empty batch cannot be run"),
    ({"support": np.zeros(4, np.float32)}, r"has shape \(4,\); the graph takes \(K, 4\)$"),
    ({"weight": np.zeros((3, 1), np.float32)}, r"the graph takes \(N,\)"),
    (
        {"weight": np.zeros(2, np.float32)},
        "inputs 'query' and 'weight' disagree on axis N: 3 and 2; give both the same",
    ),
    ({"image": np.zeros((3, 4), np.float32)}, "graph 'match' has no input 'image'; it takes query, weight, support"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_wrong_input_is_refused(session: Session, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        session.run({**feeds(3), **change})
    assert_close(session.run(feeds(3)), feeds(3))


def test_a_missing_input(session: Session) -> None:
    inputs = feeds(3)
    del inputs["weight"]
    with pytest.raises(InputError, match=r"input 'weight' is missing; got \['query', 'support'\]"):
        session.run(inputs)
    with pytest.raises(InputError, match=r"input 'query' is missing; got \[\]"):
        session.run({})


def test_resident_inputs_need_not_be_given(session: Session) -> None:
    inputs = feeds(3)
    resident = session.prepare({"support": inputs["support"]})
    for _ in range(2):
        assert_close(session.run({"query": inputs["query"], "weight": inputs["weight"]}, resident), inputs)
    other = feeds(2, support=7)
    resident = session.prepare({"support": other["support"]})
    assert_close(session.run({"query": other["query"], "weight": other["weight"]}, resident), other)


def test_a_given_input_goes_before_a_resident_one(session: Session) -> None:
    """And leaves its memory alone: an engine may hold on to it."""
    inputs, other = feeds(3), feeds(3, support=2)
    kept = other["support"].copy()
    resident = session.prepare({"support": other["support"]})
    for _ in range(2):
        assert_close(session.run(inputs, resident), inputs)
        run = session.run({"query": inputs["query"], "weight": inputs["weight"]}, resident)
        assert_close(run, {**inputs, "support": other["support"]})
        assert_close(session.run(inputs), inputs)
    np.testing.assert_array_equal(other["support"], kept)


def test_resident_inputs_of_one_shape_stay_apart(session: Session) -> None:
    """Two resident sets of one shape, used in turn and then freed, as when labels come and go."""
    sets = [feeds(1, support=1) for _ in range(4)]
    for number, inputs in enumerate(sets):
        inputs["support"] = inputs["support"] * (number + 1)
    prepared = [session.prepare({"support": inputs["support"]}) for inputs in sets]
    for _ in range(2):
        for inputs, resident in zip(sets, prepared, strict=True):
            assert_close(session.run({"query": inputs["query"], "weight": inputs["weight"]}, resident), inputs)
    del prepared, resident
    assert_close(session.run(sets[0]), sets[0])
    for number, inputs in enumerate(sets):
        np.testing.assert_array_equal(inputs["support"], feeds(1, support=1)["support"] * (number + 1))


def test_a_resident_batch_is_cut_with_the_others(session: Session) -> None:
    inputs = feeds(3 * MAX_BATCH - 1)
    resident = session.prepare({"weight": inputs["weight"], "support": inputs["support"]})
    assert_close(session.run({"query": inputs["query"]}, resident), inputs)
    with pytest.raises(InputError, match=rf"disagree on axis N: 3 and {3 * MAX_BATCH - 1}"):
        session.run({"query": inputs["query"][:3]}, resident)


def test_resident_inputs_are_checked(session: Session) -> None:
    with pytest.raises(InputError, match="has dtype float64"):
        session.prepare({"support": np.ones((1, 4), np.float32), "weight": np.ones(3)})
    with pytest.raises(InputError, match="has no input 'nothing'"):
        session.prepare({"support": np.ones((1, 4), np.float32), "nothing": np.ones(3, np.float32)})


def test_warming_up_runs_every_input(session: Session) -> None:
    session.warmup()
    session.warmup(3)


@pytest.mark.parametrize(
    "graph",
    [
        Graph("match", MATCH.inputs[:2], MATCH.outputs),
        Graph("match", (*MATCH.inputs, TensorSpec("more", "float32", ("N",))), MATCH.outputs),
        Graph("match", MATCH.inputs, MATCH.outputs[:1]),
        Graph("match", (replace(MATCH.inputs[0], name="question"), *MATCH.inputs[1:]), MATCH.outputs),
    ],
)
def test_an_engine_with_other_names_than_the_manifest_is_closed(backend: str, file: Path, graph: Graph) -> None:
    engine = open_engine(backend, file)
    with pytest.raises(EngineError, match=r"'query', 'support', 'weight'\] -> .*the manifest says .*build the bundle"):
        Session(engine, graph, max_batch=MAX_BATCH)
    with pytest.raises(EngineError, match="this engine has been closed"):
        engine.run(feeds(1))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (replace(MATCH.outputs[0], shape=("N", 6)), r"output 'scores' is \(2, 5\) float32; the manifest says \(N, 6\)"),
        (replace(MATCH.outputs[0], shape=("N", "K", 1)), r"the manifest says \(N, K, 1\) float32"),
        (replace(MATCH.outputs[0], dtype="float16"), r"the manifest says \(N, K\) float16"),
        (replace(MATCH.outputs[1], shape=("N",)), r"output 'total' is \(4,\) float32; the manifest says \(N,\)"),
    ],
)
def test_an_engine_whose_output_is_not_the_manifests(
    backend: str, file: Path, output: TensorSpec, message: str
) -> None:
    outputs = tuple(output if item.name == output.name else item for item in MATCH.outputs)
    session = Session(open_engine(backend, file), replace(MATCH, outputs=outputs), max_batch=MAX_BATCH)
    with pytest.raises(EngineError, match=message):
        session.run(feeds(2))
    session.close()


def test_a_closed_session(session: Session) -> None:
    session.close()
    with pytest.raises(EngineError, match="this engine has been closed"):
        session.run(feeds(1))
    session.close()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 2 * MAX_BATCH + 1])
def test_what_is_not_finite_is_an_engine_error(session: Session, value: float, rows: int) -> None:
    inputs = feeds(rows)
    inputs["query"][-1, 2] = value
    inputs["support"][:, 2] = np.abs(inputs["support"][:, 2]) + 0.5
    with pytest.raises(EngineError, match=r"5 of \d+ numbers in the engine's output 'scores' are NaN or inf"):
        session.run(inputs)
    measured = session.run(inputs, finite=False)["scores"]  # where distances are measured
    assert np.isfinite(measured[:-1]).all()
    assert not np.isfinite(measured[-1]).any()
