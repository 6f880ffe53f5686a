"""The most that a native kernel could save: ``python -m benchmarks.kernels --bundle bundles/afl-net.edgevis``.

An edgevis operator runs as the function body that its ONNX graph carries. No kernel of its own can do less than the
least that keeps the rest of the graph alive; so each operator's nodes are exchanged for that – hand the first input
on, or add two – and both graphs are timed side by side, on the bundle's golden inputs. A second table says what
OpenVINO spends a run on, by the kind of layer: what is in convolutions and matrix products already is in native
kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, inliner

from edgevis import EdgevisError
from export.compilers import graph_path
from export.onnx import DOMAIN
from runtime.bundle.bundle import Bundle
from runtime.common.arrays import Array
from runtime.common.json_data import to_json
from runtime.common.text import text_table
from runtime.common.vendors import import_onnxruntime, import_openvino
from runtime.parity.compare import golden_feeds
from runtime.parity.latency import interleaved

LIMIT_HEADERS = ("graph", "operator", "nodes", "runs in", "with it ms", "with the least ms", "a kernel saves at most")
PROFILE_HEADERS = ("graph", "OpenVINO's layers", "ms", "share")


# The operator that stands in, and how many of the inputs it takes. HybridMask's two features must both be made.
_LEAST = {"CrossAttention": ("Identity", 1), "GroupNorm": ("Identity", 1), "HybridMask": ("Add", 2)}


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit for one operator of a graph in one engine, batch 1: medians with its nodes and with :data:`_LEAST`."""

    graph: str
    operator: str
    nodes: int
    engine: str
    whole_ms: float
    without_ms: float
    share: float
    rounds: int

    def cells(self) -> tuple[str, ...]:
        """The row's cells under :data:`LIMIT_HEADERS`."""
        times = (f"{self.whole_ms:.2f}", f"{self.without_ms:.2f}", f"{self.share:.1%}")
        return (self.graph, self.operator, str(self.nodes), self.engine, *times)


@dataclass(frozen=True, slots=True)
class Share:
    """The share of a run in OpenVINO that all layers of one kind take."""

    graph: str
    kind: str
    ms: float
    share: float

    def cells(self) -> tuple[str, ...]:
        """The row's cells under :data:`PROFILE_HEADERS`."""
        return (self.graph, self.kind, f"{self.ms:.2f}", f"{self.share:.1%}")


def without(model: ModelProto, operator: str) -> ModelProto:
    """A copy of the graph in which every node of the operator does the least possible work."""
    least, inputs = _LEAST[operator]
    copy = ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.domain == DOMAIN and node.op_type == operator:
            del node.input[inputs:]
            del node.attribute[:]
            node.op_type, node.domain = least, ""
    return copy


def limits(name: str, model: ModelProto, feeds: Mapping[str, Array], *, seconds: float) -> Iterator[Limit]:
    """Measure each edgevis operator of a graph in ONNX Runtime and OpenVINO; all contenders take turns."""
    nodes = Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN)
    forms = {"": model, **{operator: without(model, operator) for operator in nodes}}
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for operator, form in forms.items():
        data = inliner.inline_local_functions(form).SerializeToString()
        calls["ONNX Runtime", operator] = _onnxruntime(data, feeds)
        calls["OpenVINO", operator] = partial(_openvino(data, feeds, profiled=False).infer, dict(feeds))
    if not nodes:
        return
    latencies = interleaved({"\0".join(key): call for key, call in calls.items()}, seconds=seconds * len(calls))
    for engine in ("ONNX Runtime", "OpenVINO"):
        whole = latencies[f"{engine}\0"]
        for operator, count in nodes.items():
            rest = latencies[f"{engine}\0{operator}"].p50_ms
            share = 1 - rest / whole.p50_ms
            yield Limit(name, operator, count, engine, whole.p50_ms, rest, share, whole.rounds)


def profile(name: str, model: ModelProto, feeds: Mapping[str, Array], *, runs: int = 5) -> list[Share]:
    """The milliseconds by kind of layer, the mean over ``runs``, the largest first."""
    request = _openvino(inliner.inline_local_functions(model).SerializeToString(), feeds, profiled=True)
    request.infer(dict(feeds))
    spent: Counter[str] = Counter()
    for _ in range(runs):
        request.infer(dict(feeds))
        for layer in request.profiling_info:
            spent[layer.node_type] += layer.real_time.total_seconds() * 1e3 / runs
    total = sum(spent.values())
    return [Share(name, kind, ms, ms / total) for kind, ms in spent.most_common() if ms / total >= 0.005]


def main(argv: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle whose graphs have edgevis operators")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each contender (default: 3)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    try:
        bundle = Bundle(arguments.bundle)
        golden = bundle.golden()
        bounds: list[Limit] = []
        spent: list[Share] = []
        for graph in bundle.manifest.deployment.graphs:
            model = onnx.load(bundle.file(graph_path(Path(), graph.name).as_posix()))
            inputs, _ = golden_feeds(golden, graph)
            feeds = {tensor.name: inputs[tensor.name][:1] for tensor in graph.inputs}
            bounds += limits(graph.name, model, feeds, seconds=arguments.seconds)
            spent += profile(graph.name, model, feeds)
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps({"limits": to_json(bounds), "profile": to_json(spent)}, indent=2))
    else:
        print(text_table(LIMIT_HEADERS, [row.cells() for row in bounds]))
        print()
        print(text_table(PROFILE_HEADERS, [row.cells() for row in spent]))
    return 0


def _onnxruntime(data: bytes, feeds: Mapping[str, Array]) -> Callable[[], object]:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    input_names = {value.name for value in session.get_inputs()}
    return partial(session.run, None, {name: array for name, array in feeds.items() if name in input_names})


def _openvino(data: bytes, feeds: Mapping[str, Array], *, profiled: bool) -> Any:
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(model=data, weights=b"")
    model.reshape({name: list(array.shape) for name, array in feeds.items()})
    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": profiled}
    return core.compile_model(model, "CPU", config).create_infer_request()


if __name__ == "__main__":
    sys.exit(main())
