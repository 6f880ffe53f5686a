"""TensorRT on a real GPU: what only shows there, beyond what ``test_backends.py`` asks of every backend.

These tests run by themselves where a GPU and TensorRT, or TensorRT-RTX, are found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from edgevis.cli import main
from runtime import backends
from runtime.backends._cuda import CapturedGraph, Stream, open_device
from runtime.backends._tensorrt.backend import build_on_device
from runtime.backends._tensorrt.engine import PlanEngine
from runtime.backends._tensorrt.vendor import Flavour
from runtime.bundle.engine_files import read_engine
from runtime.errors import BackendError, EngineError
from runtime.predictor import Predictor

from bundles import (
    HEIGHT,
    WIDTH,
    Array,
    Tiny,
    TinyEngine,
    expected_embeddings,
    expected_rows,
    match_onnx,
    picture,
    write_engine,
    write_model,
    write_tiny_bundle,
)
from logs import logged_warnings

TINY = Tiny()


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    try:
        backends.load(request.param).devices()
    except BackendError as error:
        pytest.skip(str(error))
    return cast(Flavour, request.param)


@pytest.fixture
def engine(flavour: Flavour, tmp_path: Path) -> Iterator[PlanEngine]:
    file = write_engine(tmp_path, TinyEngine(flavour), TINY)
    opened = opened_file(flavour, file)
    yield opened
    opened.close()


def opened_file(flavour: Flavour, file: Path) -> PlanEngine:
    batched = frozenset({"image", "embedding", "query", "weight", "scores"})
    files = replace(read_engine(file), batched=batched)
    opened = backends.load(flavour).open_engine(files, precision="fp32", device="cuda", threads=None)
    assert isinstance(opened, PlanEngine)
    return opened


def images(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, 3, HEIGHT, WIDTH)).astype(np.float32)


def check(engine: PlanEngine, batch: Array) -> None:
    expected = expected_embeddings(batch, TINY.weights)
    found = engine.run({"image": batch})["embedding"]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_cuda_graph_is_captured_once_and_right(
    engine: PlanEngine, flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = open_device()
    with device.current():
        stream = device.stream()
        stream.close()
    capture, captured = type(stream).capture, []

    def counted(stream: Stream, work: Callable[[], None]) -> CapturedGraph:
        captured.append(stream)
        return capture(stream, work)

    monkeypatch.setattr(type(stream), "capture", counted)
    for seed in range(6):
        check(engine, images(2, seed))
    # TensorRT-RTX says of some plans that they cannot be captured.
    assert len(captured) == 1 or (flavour == "tensorrt_rtx" and not captured)


def test_every_batch_of_the_profile(engine: PlanEngine) -> None:
    for seed, rows in enumerate((1, 8, 3, 1, 8, 3, 1, 8, 3)):
        check(engine, images(rows, seed))
    with pytest.raises(EngineError, match="the plan was built for"):
        engine.run({"image": images(9)})
    check(engine, images(8))


def test_resident_inputs_stay_on_the_gpu(flavour: Flavour, tmp_path: Path) -> None:
    engine = opened_file(flavour, write_model(tmp_path / "match.onnx", match_onnx(), flavour))
    supports = [np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32) for seed in range(2)]
    for run in range(12):
        support = supports[run // 4 % 2 if run < 8 else run % 2]
        query = np.random.default_rng(run).standard_normal((2, 4)).astype(np.float32)
        outputs = engine.run({"query": query, "weight": np.ones(2, np.float32)}, {"support": support})
        np.testing.assert_allclose(outputs["scores"], query @ support.T, rtol=1e-4, atol=1e-5)
    assert len(engine.resident) == 2
    engine.close()


def test_threads_at_once(engine: PlanEngine) -> None:
    failed: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for run in range(50):
                check(engine, images(1 + (run + index) % 4, 100 * index + run))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_plan_is_built_once(flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVIS_CACHE", str(tmp_path / "cache"))
    file = write_engine(tmp_path, TinyEngine(flavour), TINY)
    assert build_on_device(read_engine(file), flavour).built
    assert not build_on_device(read_engine(file), flavour).built
    (plan,) = (tmp_path / "cache" / "tensorrt").glob("*.plan")
    plan.write_bytes(plan.read_bytes()[:1000])
    with logged_warnings(match="is built again"):
        assert build_on_device(read_engine(file), flavour).built


def test_from_a_bundle_to_results(
    flavour: Flavour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEVIS_CACHE", str(tmp_path / "cache"))
    made = TinyEngine(flavour, latency_ms=None, with_parity=False, shares_enrolments=False, device="cuda")
    bundle = write_tiny_bundle(tmp_path / "gpu.edgevis", Tiny(engines=[TinyEngine(latency_ms=1e6), made]))
    assert main(["build-engine", str(bundle)]) == 0
    assert "passed" in capsys.readouterr().out
    with Predictor(bundle) as predictor:
        assert (predictor.info.backend, predictor.info.device) == (flavour, "cuda")
        assert predictor.info.parity is not None
        rows = predictor.embed([picture(seed) for seed in range(5)])
    np.testing.assert_allclose(rows, expected_rows([picture(seed) for seed in range(5)], TINY), atol=1e-4)
