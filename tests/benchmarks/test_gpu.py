"""The table of a GPU, without one: its measurements on a driver whose memory is the processor's."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.gpu import Section
from runtime.backends._tensorrt.pool import LanePool
from runtime.errors import UnavailableError

from host_device import HostDevice, MatchPlan, engine_on


def test_batches_and_threads() -> None:
    device = HostDevice()
    pool = LanePool(1 << 30)
    engine = engine_on(device, MatchPlan(device, max_rows=8, max_contexts=4), pool=pool)
    support = np.ones((3, 4), np.float32)

    def run(rows: int) -> object:
        return engine.run(
            {"query": np.ones((rows, 4), np.float32), "weight": np.ones(rows, np.float32), "support": support}
        )

    fixed, mixed = gpu.batch_rows(run, pool, largest=8, calls=40)
    assert (fixed[0], fixed[4], fixed[5]) == ("8", "1", "38")
    assert (mixed[0], mixed[4]) == ("1..8", "3")
    assert int(mixed[5]) == 40 - 2 * 3
    rows = gpu.thread_rows(run, pool, largest=8, calls=64)
    assert [row[:3] for row in rows] == [("1", "64", "0"), ("4", "64", "0"), ("16", "64", "0"), ("32", "64", "0")]
    engine.close()


def test_a_section_that_fails_says_so_and_the_others_are_measured() -> None:
    def fail() -> gpu.Rows:
        raise UnavailableError("there is no GPU")

    parts = [
        Section("One", ("a", "b"), lambda: [("1", "2")]),
        Section("Two", ("a", "b"), fail),
    ]
    text = gpu.table(parts, minutes=1)
    assert "## One" in text
    assert "failed: there is no GPU" in text
    assert text.index("## One") < text.index("## Two")
    assert "left out: no time" in gpu.table(parts, minutes=-1)


def test_versions_name_what_is_missing() -> None:
    rows: dict[str, str] = {row[0]: row[1] for row in gpu.versions(HostDevice(integrated=True).opened)}
    assert rows["GPU"].endswith("integrated")
    assert rows["onnxruntime"]


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def none() -> None:
        raise UnavailableError("the NVIDIA driver finds no GPU")

    monkeypatch.setattr(gpu, "open_device", none)
    assert gpu.main(["any.edgevis"]) == 1
    assert capsys.readouterr().err == "error: the NVIDIA driver finds no GPU\n"
