"""Compare a compiled engine with runs of its graph, and record its outputs for later comparisons.

The parity gate bounds what is lost against the reference model; within that bound a compiler's fault hides behind the
cost of rounding. So an engine whose precision rounds is compared with two runs of the graph it was compiled from:

- what the INT8 search saw: the same graph in the same engine, on all verification images. Nothing but the order of
  summation may differ, and how far that carries is measured with other thread counts and batch sizes;
- an independent run of the graph, node by node, on the golden images. Engines fuse, and so round in other places: the
  interval is the loss of the graph itself. For BF16 and FP16 the graph is the float one with its products
  rounded, see :mod:`export.rounding`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from export.cpu_proxy import CpuProxy
from export.reference import golden_of, golden_rows
from export.rounding import rounded_graph
from runtime.bundle.manifest import MAX_DIFFERENCE, EngineRecord, OutputRecord, OutputsRecord
from runtime.bundle.spec import Deployment, Graph, Precision
from runtime.common.arrays import Array, write_arrays
from runtime.common.files import scratch_folder
from runtime.common.machine import environment
from runtime.parity.compare import BATCH_SIZES, golden_feeds, outputs_of, rows_of, run_in_batches
from runtime.parity.recorded import FILE, FLOOR, allowed, difference
from runtime.sessions.session import Session

Sessions = Mapping[str, Session]
Outputs = Mapping[str, Array]

# Engines fuse what an independent run does one by one; the rounding that they save or add is of the size of that
# which the graph itself does.
_INDEPENDENT = 3.0
# Relative: sixteen steps of float32.
_NUDGE = 2.0**-20
# The rows of recorded.npz; a row of support features is tens of megabytes.
_MAX_RECORDED_BYTES = 16 << 20

THREADS = (1, 2)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of the comparison for one engine.

    Attributes:
        record: With what was recorded of it.
        arrays: For ``recorded.npz``.
        complaints: A sentence for each output in which engine and graph disagree.
    """

    record: EngineRecord
    arrays: Outputs = field(default_factory=dict)
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Agreement:
    """Compares engines with runs of their graphs.

    Attributes:
        graphs: Backend and precision to the graphs that the engine was compiled from, before any cast to float16.
        searched: Backend to ``GRAPH/OUTPUT``: what the search's INT8 engine gave for all rows of the reference.
        autocast: The precisions whose graphs were cast to float16 afterwards.
        deployment: The model's graphs.
        reference: Real inputs and the reference model's outputs.
        golden: The same of the images that go into the bundle; None where those are the first of the reference.
    """

    graphs: Mapping[tuple[str, Precision], Mapping[str, ModelProto]]
    searched: Mapping[str, Outputs]
    autocast: Collection[Precision]
    deployment: Deployment
    reference: Mapping[str, Array]
    golden: Mapping[str, Array] | None = None

    def check(
        self,
        record: EngineRecord,
        sessions: Sessions,
        outputs: Outputs,
        *,
        reopen: Callable[[int], Sessions] | None,
    ) -> Outcome:
        """Compare an engine with its graph, and measure how much its own outputs may vary.

        Args:
            record: The engine.
            sessions: The open engine, or what stands in for it.
            outputs: ``GRAPH/OUTPUT`` for all rows of the reference.
            reopen: Opens it with that many threads; None for what stands in.
        """
        key = (record.backend, record.precision)
        if record.precision == "fp32" or key not in self.graphs:
            return Outcome(record)
        head = golden_of(self.reference, self.deployment)
        golden = head if self.golden is None else self.golden
        known = self.searched.get(record.backend, {}) if record.precision == "int8" and reopen is not None else {}
        engine_outputs = outputs_of(sessions, golden)
        variation = self._variation(sessions, engine_outputs, golden, reopen)
        nudged = outputs_of(sessions, _nudged(golden, self.deployment))
        complaints: list[str] = []
        measured: list[OutputRecord] = []
        arrays: dict[str, Array] = {}
        row_count = self._recorded_rows(golden_rows(self.deployment))
        for graph in self.deployment.graphs:
            independent, noise = self._independent(record, graph, golden)
            first = independent if self.golden is None or not known else self._independent(record, graph, head)[0]
            for tensor in graph.outputs:
                name = f"{graph.name}/{tensor.name}"
                actual = engine_outputs[name]
                flipped = graph.max_flipped
                kernels = difference(independent[tensor.name], actual, flipped=flipped)
                bound = _INDEPENDENT * noise[tensor.name] + FLOOR
                others = {
                    "an independent run of its graph": kernels,
                    "the same engine's with another number of threads or images": variation[name],
                }
                complaints += [
                    _disagree(record, name, other, distance, bound)
                    for other, distance in others.items()
                    if not distance <= bound
                ]
                if reopen is None:
                    # A device's kernels cannot be measured here; only the rounding error of its graph can.
                    kernels = max(kernels, noise[tensor.name], difference(golden[name], actual, flipped=flipped))
                # Where this machine's kernels happen to round as the independent run does, another one's may not.
                kernels = max(kernels, difference(actual, nudged[name], flipped=flipped))
                item = OutputRecord(name, _finite(variation[name]), _finite(kernels))
                if name in known:
                    distance = difference(known[name], outputs[name], flipped=flipped)
                    rounding = difference(first[tensor.name], known[name][: len(first[tensor.name])], flipped=flipped)
                    clean = replace(item, kernels=min(item.kernels, _finite(rounding)))
                    within = allowed(clean, same_kernels=True)
                    if not distance <= within:
                        complaints.append(
                            _disagree(record, name, "the search's engine of the same graph", distance, within)
                        )
                measured.append(item)
                arrays[f"{record.name}/{name}"] = actual[:row_count] if tensor.batched else actual
        where = environment(record.backend) if reopen is not None and record.device == "cpu" else {}
        recorded = OutputsRecord(record.name, where, tuple(measured))
        return Outcome(replace(record, recorded=recorded), arrays, tuple(complaints))

    def _variation(
        self,
        sessions: Sessions,
        engine_outputs: Outputs,
        golden: Mapping[str, Array],
        reopen: Callable[[int], Sessions] | None,
    ) -> dict[str, float]:
        """The largest difference between right runs of the engine, for each output."""
        worst = dict.fromkeys(engine_outputs, 0.0)

        def note(graph: Graph, session: Session, inputs: Mapping[str, Array], size: int) -> None:
            outputs = run_in_batches(session, graph, inputs, size=size, rows=rows_of(graph, inputs))
            for name, array in outputs.items():
                key = f"{graph.name}/{name}"
                worst[key] = max(worst[key], difference(engine_outputs[key], array, flipped=graph.max_flipped))

        for session in sessions.values():
            graph = session.graph
            inputs, _ = golden_feeds(golden, graph)
            for size in BATCH_SIZES[:-1]:
                note(graph, session, inputs, min(size, rows_of(graph, inputs)))
        if reopen is None:
            return worst
        for threads in THREADS:
            others = reopen(threads)
            try:
                for session in others.values():
                    inputs, _ = golden_feeds(golden, session.graph)
                    for size in (1, max(BATCH_SIZES)):
                        note(session.graph, session, inputs, size)
            finally:
                for session in others.values():
                    session.close()
        return worst

    def _independent(
        self, record: EngineRecord, graph: Graph, golden: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, float]]:
        """A graph's outputs for the golden rows, run node by node, and the rounding error of each output."""
        model = self.graphs[record.backend, record.precision][graph.name]
        _, expected = golden_feeds(golden, graph)
        if record.precision == "int8" or graph.set_of:  # a graph over a set is the float one in any precision
            outputs = _run(model, graph, golden)
            noise = {
                name: difference(expected[name], array, flipped=graph.max_flipped) for name, array in outputs.items()
            }
            if record.precision in self.autocast and not graph.set_of:
                # A value that float16 moves over a step of INT8 costs what INT8's own rounding does; which ones it
                # moves depends on the kernels, so that one run in float16 says too little.
                half = _run(rounded_graph(model, "fp16"), graph, golden)
                noise = {
                    name: max(noise[name], difference(array, half[name], flipped=graph.max_flipped))
                    for name, array in outputs.items()
                }
            return outputs, noise
        outputs = _run(rounded_graph(model, "bf16" if record.precision == "bf16" else "fp16"), graph, golden)
        return outputs, {
            name: difference(expected[name], array, flipped=graph.max_flipped) for name, array in outputs.items()
        }

    def _recorded_rows(self, rows: int) -> int:
        """The number of rows of an engine's outputs that are recorded."""
        sizes = [
            4 * math.prod(size for size in tensor.shape[1:] if not isinstance(size, str))
            for graph in self.deployment.graphs
            for tensor in graph.outputs
            if tensor.batched
        ]
        return max(1, min(rows, _MAX_RECORDED_BYTES // max(sum(sizes), 1)))


def write_recorded(engines: Sequence[EngineRecord], arrays: Mapping[str, Array], folder: Path) -> None:
    """Write the recorded outputs of those engines that are in the bundle; no file where nothing was recorded."""
    named = {record.recorded.engine for record in engines if record.recorded is not None}
    selected = {name: array for name, array in arrays.items() if name.partition("/")[0] in named}
    if selected:
        write_arrays(folder / FILE, selected)


def _nudged(golden: Mapping[str, Array], deployment: Deployment) -> dict[str, Array]:
    """The golden inputs, each value changed by at most what another order of summation changes in a float32 sum."""
    random = np.random.default_rng(0)
    inputs = {f"{graph.name}/{tensor.name}" for graph in deployment.graphs for tensor in graph.inputs}
    return {
        name: (array * (1 + random.uniform(-_NUDGE, _NUDGE, array.shape))).astype(array.dtype)
        if name in inputs and array.dtype == np.float32
        else array
        for name, array in golden.items()
    }


def _run(model: ModelProto, graph: Graph, golden: Mapping[str, Array]) -> dict[str, Array]:
    inputs, _ = golden_feeds(golden, graph)
    with scratch_folder("edgevis-graph-") as folder:
        path = Path(folder, f"{graph.name}.onnx")
        onnx.save(model, path)
        engine = CpuProxy(path, exact=True)
    session = Session(engine, graph, max_batch=max(BATCH_SIZES))
    try:
        return run_in_batches(session, graph, inputs, size=max(BATCH_SIZES), rows=rows_of(graph, inputs))
    finally:
        session.close()


def _finite(value: float) -> float:
    """Clip a difference to what a manifest can hold; an engine that differs by more is refused anyway."""
    return min(value, MAX_DIFFERENCE) if not math.isnan(value) else MAX_DIFFERENCE


def _disagree(record: EngineRecord, output: str, other: str, distance: float, within: float) -> str:
    return (
        f"the engine {record.name} and its graph disagree: {output} is {distance:.2e} from {other}; right runs lie "
        f"within {within:.2e}. The compiler, or the file that it wrote, is at fault, and other images to calibrate on "
        f"are no cure: leave {record.precision} out of --precision, or use other versions of the tools"
    )
