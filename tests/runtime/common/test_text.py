"""Tables, units and timings as people read them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from runtime.common.text import markdown_table, row_format, size_text, text_table
from runtime.parity.latency import interleaved

HEADERS = ["engine", "p50 ms"]
ROWS = [["onnxruntime-fp32", "12.50"], ["ort", "–"], ["x", "3.1"]]


def test_a_table_of_text() -> None:
    assert text_table(HEADERS, ROWS) == "\n".join(
        [
            "engine            p50 ms",
            "----------------  ------",
            "onnxruntime-fp32   12.50",
            "ort                    –",
            "x                    3.1",
        ]
    )


def test_rows_as_they_come_look_like_the_table_that_is_known() -> None:
    row = row_format(HEADERS, [16, -6])
    lines = [row(HEADERS), row(None), *map(row, ROWS)]
    assert "\n".join(lines) == text_table(HEADERS, ROWS)
    assert row(["a name that is longer than expected", "1"]).endswith("expected       1")


def test_a_table_in_markdown() -> None:
    assert markdown_table(HEADERS, ROWS) == "\n".join(
        [
            "| engine           | p50 ms |",
            "| ---------------- | -----: |",
            "| onnxruntime-fp32 |  12.50 |",
            "| ort              |      – |",
            "| x                |    3.1 |",
        ]
    )


def test_a_table_without_rows() -> None:
    assert text_table(["a", "b"], []) == "a    b\n---  ---"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (2 * 10**9, "2.0 GB"),
        (10**13, "10000.0 GB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=0.0, min_rounds=7)
    assert "".join(calls) == "ab" * 2 + "aabb" * 7  # two rounds and each first call of a turn are not counted
    assert {name: latency.rounds for name, latency in found.items()} == {"a": 7, "b": 7}


def test_quantiles_are_of_each_contenders_own_calls() -> None:
    found = interleaved({"quick": lambda: None, "slow": lambda: time.sleep(0.005)}, seconds=0.05, min_rounds=3)
    slow, quick = found["slow"], found["quick"]
    assert slow.rounds == quick.rounds >= 3
    assert 5.0 <= slow.p50_ms <= slow.p90_ms <= slow.p99_ms
    assert quick.p50_ms < slow.p50_ms
    assert np.isfinite(quick.p99_ms)
