"""The benchmark of what native kernels could save."""

from __future__ import annotations

import json
from collections import Counter

import onnx
import pytest

from benchmarks import kernels
from edgevis import ops
from runtime.common.discovery import names_in

from built import small_bundle


def test_every_operator_has_a_least() -> None:
    found = {__import__(f"{ops.__name__}.{name}", fromlist=["NODE"]).NODE for name in names_in(ops.__name__)}
    assert found == set(kernels._LEAST)


def test_operators_are_exchanged_and_timed(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = small_bundle(tmp_path_factory, "hsnet-hm")
    model = onnx.load(bundle / "graphs" / "support.onnx")
    before, after = (
        Counter(node.op_type for node in graph.graph.node) for graph in (model, kernels.without(model, "HybridMask"))
    )
    count = before["HybridMask"]
    assert count > 0
    assert after["HybridMask"] == 0
    assert after["Add"] == before["Add"] + count

    assert kernels.main(["--bundle", str(bundle), "--seconds", "0.02", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {(row["graph"], row["operator"], row["engine"]): row for row in found["limits"]}
    assert set(rows) == {
        (graph, operator, engine)
        for graph, operator in (("support", "HybridMask"), ("query", "GroupNorm"))
        for engine in ("ONNX Runtime", "OpenVINO")
    }
    for row in rows.values():
        assert row["share"] == pytest.approx(1 - row["without_ms"] / row["whole_ms"])
    assert {row["graph"] for row in found["profile"]} == {"support", "query"}
    for graph in ("support", "query"):
        shares = [row["share"] for row in found["profile"] if row["graph"] == graph]
        assert 0.9 < sum(shares) <= 1.0 + 1e-9
