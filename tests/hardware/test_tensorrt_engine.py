"""The bookkeeping of an open plan, without a GPU: see ``host_device.py``, and ``test_tensorrt_gpu.py`` for the rest."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from runtime.backends._tensorrt.engine import MAX_IDLE_LANES, PlanEngine
from runtime.errors import EngineError

from bundles import Array
from host_device import MAX_ROWS, HostDevice, MatchPlan


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def device(request: pytest.FixtureRequest) -> HostDevice:
    return HostDevice(integrated=request.param)


@pytest.fixture
def engine(device: HostDevice) -> Iterator[PlanEngine]:
    opened = opened_on(device)
    yield opened
    opened.close()
    assert (device.live, device.streams, device.graphs) == ({}, set(), set()), "a closed engine left something"


def opened_on(device: HostDevice) -> PlanEngine:
    return PlanEngine(MatchPlan(device), device, name="match.onnx")  # type: ignore[arg-type]


def support(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def check(engine: PlanEngine, rows: int, kept: Array, *, resident: bool, seed: int = 0) -> dict[str, Array]:
    """One run with random queries, whose results are right."""
    random = np.random.default_rng(seed)
    query = random.standard_normal((rows, 4)).astype(np.float32)
    weight = random.standard_normal(rows).astype(np.float32)
    feeds = {"query": query, "weight": weight}
    outputs = engine.run(feeds, {"support": kept}) if resident else engine.run({**feeds, "support": kept})
    np.testing.assert_allclose(outputs["scores"], (query * weight[:, None]) @ kept.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["total"], kept.sum(axis=0), rtol=1e-4, atol=1e-5)
    return outputs


def test_names(engine: PlanEngine) -> None:
    assert engine.inputs == ("query", "weight", "support")
    assert engine.outputs == ("scores", "total")


def test_a_graph_is_captured_after_the_second_run_and_launched_from_then_on(
    engine: PlanEngine, device: HostDevice
) -> None:
    for run in range(5):
        check(engine, 2, support(3, run), resident=False, seed=run)
        assert device.launches == max(0, run - 1)
    assert len(device.graphs) == 1
    check(engine, 3, support(3), resident=False)
    assert device.launches == 3, "another shape runs in a lane of its own"


def test_without_graphs_it_runs_plainly() -> None:
    device = HostDevice(capturable=False)
    engine = opened_on(device)
    for run in range(5):
        check(engine, 2, support(3), resident=False, seed=run)
    assert device.launches == 0
    engine.close()


def test_results_belong_to_the_caller(engine: PlanEngine) -> None:
    kept = [check(engine, 2, support(3), resident=False, seed=run) for run in range(5)]
    copies = [outputs["scores"].copy() for outputs in kept]
    for outputs, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(outputs["scores"], copy)
        outputs["scores"][...] = 7
    check(engine, 2, support(3), resident=False)


def test_a_resident_input_is_sent_once(device: HostDevice, engine: PlanEngine) -> None:
    kept = support(3)
    check(engine, 2, kept, resident=True)
    device.copied.clear()
    for run in range(1, 6):
        check(engine, 2, kept, resident=True, seed=run)
    # On an integrated GPU nothing is copied at all; else query and weight go up, until a graph does it.
    assert device.copied.count("upload") == (0 if device.info.integrated else 2 * 2)
    assert device.launches == 4
    assert len(engine.resident) == 1


def test_another_resident_input_takes_the_place_of_the_first(engine: PlanEngine, device: HostDevice) -> None:
    first, second = support(3, 1), support(3, 2)
    for run in range(4):
        check(engine, 2, first, resident=True, seed=run)
    for run in range(4):
        check(engine, 2, second, resident=True, seed=run)
    assert len(device.graphs) == 1, "the first one's graph would read the first one's memory"
    for run in range(8):
        check(engine, 2, (first, second)[run % 2], resident=True, seed=run)


def test_memory_of_a_resident_input_goes_with_it(engine: PlanEngine, device: HostDevice) -> None:
    kept = support(3)
    check(engine, 2, kept, resident=True)
    before = len(device.live)
    del kept
    gc.collect()
    assert len(engine.resident) == 0
    assert len(device.live) == before - 1
    for seed in range(30):  # arrays that may lie where it lay
        check(engine, 2, support(3, seed), resident=True, seed=seed)
    gc.collect()
    assert len(engine.resident) == 0


def test_shapes_beyond_the_plan_are_refused_and_the_next_run_is_right(engine: PlanEngine) -> None:
    with pytest.raises(EngineError, match=r"shape \(9, 4\); the plan was built for 1 to 8 rows: .*--max-shapes"):
        engine.run(
            {
                "query": np.zeros((MAX_ROWS + 1, 4), np.float32),
                "weight": np.zeros(MAX_ROWS + 1, np.float32),
                "support": support(2),
            }
        )
    check(engine, 2, support(3), resident=False)


def test_a_type_that_the_plan_does_not_have(engine: PlanEngine) -> None:
    feeds = {"query": np.zeros((1, 4), np.float16), "weight": np.zeros(1, np.float32), "support": support(1)}
    with pytest.raises(EngineError, match="input 'query' is float16; the plan takes float32"):
        engine.run(feeds)


def test_many_shapes_take_bounded_memory(engine: PlanEngine, device: HostDevice) -> None:
    for rows in range(1, MAX_ROWS + 1):
        for count in range(1, 6):
            check(engine, rows, support(count), resident=False)
    assert len(device.streams) == MAX_IDLE_LANES
    per_lane = 5 if device.info.integrated else 10
    assert len(device.live) == MAX_IDLE_LANES * per_lane


def test_memory_that_idle_lanes_hold_is_given_to_a_new_one() -> None:
    device = HostDevice(max_bytes=1500)
    engine = opened_on(device)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 1):
        check(engine, rows, support(4), resident=False)
    engine.close()
    assert device.live == {}


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    device = HostDevice(max_bytes=40)
    engine = opened_on(device)
    with pytest.raises(EngineError, match="out of memory"):
        check(engine, 8, support(8), resident=False)
    assert (device.live, device.streams) == ({}, set())
    engine.close()


def test_threads_get_their_own_results(engine: PlanEngine, device: HostDevice) -> None:
    failed: list[BaseException] = []
    shared = support(2, 99)

    def work(index: int) -> None:
        try:
            for run in range(40):
                kept = shared if run % 3 else support(2, run)
                check(engine, 1 + (run + index) % 3, kept, resident=run % 2 == 0, seed=100 * index + run)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(device.streams) <= MAX_IDLE_LANES


def test_closing_while_calls_run(device: HostDevice) -> None:
    engine = opened_on(device)
    refused = threading.Barrier(4)
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                check(engine, 2, support(3), resident=True)
        except EngineError as error:
            if "this engine has been closed" not in str(error):
                wrong.append(error)
        except BaseException as error:
            wrong.append(error)
        refused.wait(timeout=30)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    engine.close()
    refused.wait(timeout=30)
    for thread in threads:
        thread.join()
    engine.close()
    assert wrong == []
    assert (device.live, device.streams, device.graphs) == ({}, set(), set())
