"""The bookkeeping of an open plan, without a GPU: see ``host_device.py``, and ``test_tensorrt_gpu.py`` for the rest."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from runtime.backends._tensorrt.engine import PlanEngine
from runtime.backends._tensorrt.pool import LanePool
from runtime.errors import DeviceMemoryError, EngineError

from bundles import Array
from host_device import MAX_ROWS, NOTHING, HostDevice, MatchPlan, engine_on


@pytest.fixture(params=[False, True], ids=["discrete", "integrated"])
def device(request: pytest.FixtureRequest) -> HostDevice:
    return HostDevice(integrated=request.param)


@pytest.fixture
def engine(device: HostDevice) -> Iterator[PlanEngine]:
    opened = engine_on(device)
    yield opened
    opened.close()
    assert device.left == NOTHING


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
    check(engine, 2, support(4), resident=False)
    assert device.launches == 3, "another shape runs in a lane of its own"


def test_without_graphs_it_runs_plainly() -> None:
    device = HostDevice(capturable=False)
    engine = engine_on(device)
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


def test_resident_inputs_in_turn_share_a_graph(engine: PlanEngine, device: HostDevice) -> None:
    """It reads the lane's copy; each of them is sent once, and moved on the GPU where it is another than before."""
    first, second = support(3, 1), support(3, 2)
    for run in range(100):
        check(engine, 2, (first, second)[run % 2], resident=True, seed=run)
    assert (device.launches, len(device.graphs)) == (98, 1)
    assert device.copied.count("move") == 100
    device.copied.clear()
    for run in range(100):
        check(engine, 2, first, resident=True, seed=run)
    assert device.copied == ["move"], "it stays in the lane"


def test_memory_of_a_resident_input_goes_with_it(engine: PlanEngine, device: HostDevice) -> None:
    kept = support(3)
    check(engine, 2, kept, resident=True)
    before = len(device.live)
    del kept
    gc.collect()
    assert len(engine.resident) == 0
    other = support(3, 1)
    check(engine, 2, other, resident=True)
    assert len(device.live) == before, "its memory is freed when the next one comes"
    del other
    for seed in range(30):  # arrays that may lie where it lay
        check(engine, 2, support(3, seed), resident=True, seed=seed)
    gc.collect()
    assert len(engine.resident) == 0


def test_shapes_beyond_the_plan_are_refused_and_the_next_run_is_right(engine: PlanEngine) -> None:
    with pytest.raises(
        EngineError, match=r"shape \(9, 4\); the plan was built for \(1, 4\) to \(8, 4\): .*--max-shapes"
    ):
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


def test_many_shapes_take_bounded_memory() -> None:
    device = HostDevice(max_bytes=20_000)
    engine = engine_on(device)
    for count in range(1, 60):
        check(engine, 2, support(count), resident=False)
    assert sum(device.live.values()) <= 10_000
    check(engine, 2, support(200), resident=False)
    assert len(device.streams) == 1, "the last one stays, however large"
    engine.close()
    assert device.left == NOTHING


def test_many_small_lanes_are_bounded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.backends._tensorrt.pool.MAX_IDLE_LANES", 4)
    device = HostDevice()
    engine = engine_on(device)
    for count in range(1, 8):
        check(engine, 2, support(count), resident=False)
    assert len(device.streams) == 4
    engine.close()
    assert device.left == NOTHING


def test_memory_that_idle_lanes_hold_is_given_to_a_new_one() -> None:
    device = HostDevice(max_bytes=1500)
    engine = engine_on(device)
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 1):
        check(engine, rows, support(4), resident=False)
    engine.close()
    assert device.left == NOTHING


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    device = HostDevice(max_bytes=40)
    engine = engine_on(device)
    with pytest.raises(EngineError, match="out of memory"):
        check(engine, 8, support(8), resident=False)
    assert device.left == NOTHING
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
    assert len(device.streams) <= 6 * 3 * 2, "threads, numbers of rows, resident inputs or none"


def test_closing_while_calls_run(device: HostDevice) -> None:
    engine = engine_on(device)
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
    assert device.left == NOTHING


class Counted:
    """Threads that call an engine with given batches, in turn, and check each result."""

    def __init__(self, engine: PlanEngine, batches: Sequence[int], *, threads: int) -> None:
        self.failed: list[BaseException] = []
        kept, todo = support(3), list(enumerate(batches))

        def work() -> None:
            try:
                while True:
                    try:
                        seed, rows = todo.pop()
                    except IndexError:
                        return
                    check(engine, rows, kept, resident=True, seed=seed)
            except BaseException as error:
                self.failed.append(error)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def batches(count: int, largest: int = 32) -> list[int]:
    return np.random.default_rng(0).integers(1, largest + 1, count).tolist()


def test_any_batches_need_a_lane_for_each_power_of_two() -> None:
    """The issue's measurement: lanes by exact shape made 765 contexts and 62 graph launches."""
    device = HostDevice()
    plan, pool = MatchPlan(device, max_rows=32), LanePool(1 << 30)
    engine = engine_on(device, plan, pool=pool)
    assert Counted(engine, batches(1000), threads=1).failed == []
    assert (plan.contexts, device.launches) == (6, 1000 - 2 * 6)
    assert pool.counts == {"lanes": 6, "calls": 1000, "launches": 1000 - 2 * 6}
    engine.close()
    assert device.left == NOTHING


@pytest.mark.parametrize("row_bytes", [0, 1000])
def test_more_threads_than_memory_for_lanes_wait(row_bytes: int) -> None:
    """The issue's measurement: of 48 calls of 16 threads 27 failed, with memory for six lanes."""
    # By what TensorRT says of contexts that bring their memory, and by what CUDA says where it is lent to them.
    device = HostDevice(max_bytes=1 << 40 if not row_bytes else 6 * 32 * row_bytes)
    plan = MatchPlan(device, max_rows=32, max_contexts=6 if not row_bytes else 1000, row_bytes=row_bytes)
    engine = engine_on(device, plan)
    assert Counted(engine, batches(1000), threads=16).failed == []
    assert plan.contexts <= 100
    assert device.launches >= 1000 - 2 * plan.contexts
    assert len(device.streams) <= 6 if not row_bytes else sum(device.live.values()) <= device.max_bytes
    engine.close()
    assert device.left == NOTHING


def test_with_memory_for_one_lane_all_batches_share_it() -> None:
    device = HostDevice()
    plan = MatchPlan(device, max_rows=32, max_contexts=1)
    engine = engine_on(device, plan)
    assert Counted(engine, batches(200), threads=4).failed == []
    assert plan.contexts <= 6, "each one at most as large as the next"
    assert device.launches >= 180
    engine.close()


def test_a_caller_waits_for_a_lane_of_another_engine() -> None:
    device = HostDevice()
    pool = LanePool(1 << 20)
    plan = MatchPlan(device, max_contexts=1)
    first, second = (engine_on(device, plan, pool=pool) for _ in range(2))
    for run in range(4):
        check((first, second)[run % 2], 2, support(3), resident=False)
    failed = [*Counted(first, batches(50, 8), threads=3).failed, *Counted(second, batches(50, 8), threads=3).failed]
    assert failed == []
    first.close()
    check(second, 2, support(3), resident=False)
    second.close()
    assert device.left == NOTHING


def test_only_the_first_lane_s_lack_of_memory_is_an_error() -> None:
    device = HostDevice()
    engine = engine_on(device, MatchPlan(device, max_contexts=0))
    with pytest.raises(DeviceMemoryError, match="OutOfMemory"):
        check(engine, 2, support(3), resident=False)
    failed = Counted(engine, [1] * 8, threads=8).failed
    assert [type(error) for error in failed] == [DeviceMemoryError] * 8
    engine.close()
    assert device.left == NOTHING


@pytest.mark.parametrize("rows", [1, 3, 5, 7, 8])
def test_padded_batches_give_each_row_what_it_gives_alone(rows: int) -> None:
    """Bit for bit, after other rows have been in the lane, with numbers that any order of adding keeps exact."""
    device = HostDevice()
    padded, exact = engine_on(device), engine_on(device, batched=False)
    random = np.random.default_rng(rows)

    def whole(*shape: int) -> Array:
        return random.integers(-50, 50, shape).astype(np.float32)

    kept = whole(5, 4)
    for _ in range(4):
        check(padded, 8, kept, resident=False)
        feeds = {"query": whole(rows, 4), "weight": whole(rows), "support": kept}
        outputs, expected = padded.run(feeds), exact.run(feeds)
        for name, array in expected.items():
            np.testing.assert_array_equal(outputs[name], array)
        for row in range(rows):
            alone = exact.run(
                {**feeds, "query": feeds["query"][row : row + 1], "weight": feeds["weight"][row : row + 1]}
            )
            np.testing.assert_array_equal(outputs["scores"][row], alone["scores"][0])
    padded.close()
    exact.close()


def test_a_resident_input_for_which_there_is_no_memory_takes_that_of_idle_lanes() -> None:
    device = HostDevice(max_bytes=10_000)
    engine = engine_on(device)
    check(engine, 8, support(60), resident=False)
    check(engine, 1, support(150), resident=True)
    engine.close()
    assert device.left == NOTHING


def test_an_interrupted_run_leaves_no_work_and_its_error_is_the_one_that_is_seen(device: HostDevice) -> None:
    engine = engine_on(device)
    check(engine, 2, support(3), resident=False)

    device.interruption = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        check(engine, 2, support(3), resident=False)
    assert device.left == NOTHING, "it was waited for before its memory was freed"
    check(engine, 2, support(3), resident=False)
    engine.close()


def test_a_lane_that_fails_is_waited_for_and_closed(device: HostDevice) -> None:
    engine = engine_on(device)
    check(engine, 2, support(3), resident=False)
    device.failing |= {"cudaStreamSynchronize", "cudaFree", "cudaFreeHost", "cudaStreamDestroy"}
    with pytest.raises(EngineError, match="cudaStreamSynchronize: unspecified launch failure"):
        check(engine, 2, support(3), resident=False)
    assert device.left == NOTHING
    assert not device.pending_error, "another library in the process would take it for its own"
    device.failing.clear()
    check(engine, 2, support(3), resident=False)
    engine.close()
    assert device.left == NOTHING


def test_closing_tries_everything_and_says_what_failed_first(device: HostDevice) -> None:
    engine = engine_on(device)
    for _ in range(3):
        check(engine, 2, support(3), resident=True)
    device.failing |= {"cudaGraphExecDestroy", "cudaFree", "cudaFreeHost"}
    with pytest.raises(EngineError, match="cudaGraphExecDestroy"):
        engine.close()
    assert device.left == NOTHING


@pytest.mark.parametrize("failing", ["cudaGraphInstantiate", "cudaStreamEndCapture"])
def test_a_capture_that_fails_leaves_no_graph(device: HostDevice, failing: str) -> None:
    engine = engine_on(device)
    device.failing.add(failing)
    for run in range(4):
        check(engine, 2, support(3), resident=False, seed=run)
    assert device.launches == 0
    assert device.graphs == set()
    engine.close()


def test_pycuda_runs_the_same_plan() -> None:
    device = HostDevice(package="pycuda")
    plan = MatchPlan(device, max_rows=32, max_contexts=3)
    engine = engine_on(device, plan)
    assert Counted(engine, batches(100), threads=6).failed == []
    first, second = support(3, 1), support(3, 2)
    for run in range(6):
        check(engine, 2, (first, second)[run % 2], resident=True, seed=run)
    assert device.launches == 0, "it has no graphs"
    engine.close()
    gc.collect()
    assert device.left == NOTHING


@pytest.mark.parametrize("integrated", [False, True])
def test_where_resident_inputs_lie(monkeypatch: pytest.MonkeyPatch, integrated: bool) -> None:
    for kind, uploads in (("", 1), ("device", 1), ("mapped", 0 if integrated else 1)):
        monkeypatch.setenv("EDGEVIS_RESIDENT", kind)
        device = HostDevice(integrated=integrated)
        engine = engine_on(device)
        kept = support(3)
        device.copied.clear()
        check(engine, 2, kept, resident=True)
        # On a discrete GPU query and weight go up, too.
        assert device.copied.count("upload") == uploads + (0 if integrated else 2)
        engine.close()
        assert device.left == NOTHING
    monkeypatch.setenv("EDGEVIS_RESIDENT", "managed")
    with pytest.raises(EngineError, match="EDGEVIS_RESIDENT is 'managed'; allowed: device, mapped"):
        check(engine_on(HostDevice()), 2, support(3), resident=True)
