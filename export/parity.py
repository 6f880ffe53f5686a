"""The parity gate: every final engine file is opened again from the disk and compared with the reference model."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from export.agreement import Agreement
from export.cpu_proxy import CpuProxy
from runtime import tasks
from runtime.bundle.manifest import EngineRecord, GraphParity
from runtime.bundle.spec import Deployment, Precision
from runtime.common.arrays import Array
from runtime.common.machine import machine_name
from runtime.errors import ParityError
from runtime.parity.compare import distance_text
from runtime.parity.latency import interleaved
from runtime.parity.measure import CompareDecisions, measure_engine, one_image
from runtime.sessions.open import open_graphs
from runtime.sessions.session import Session

_LATENCY_SECONDS = 0.4  # for each engine

NO_CPU_PROXIES: Mapping[str, Mapping[str, Path]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class CheckedEngines:
    """The result of the parity gate.

    Attributes:
        engines: The engines that hold their tolerance and compute what their graphs say.
        refused: A sentence about each fault of an optional one that does not.
        recorded: The arrays for ``recorded.npz``.
    """

    engines: tuple[EngineRecord, ...]
    refused: tuple[str, ...]
    recorded: Mapping[str, Array]


def check_parity(
    records: Sequence[EngineRecord],
    *,
    bundle: Path,
    deployment: Deployment,
    reference: Mapping[str, Array],
    advance: Callable[[int, int], None],
    optional: Container[Precision] = (),
    cpu_proxies: Mapping[str, Mapping[str, Path]] = NO_CPU_PROXIES,
    agreement: Agreement | None = None,
    decide: CompareDecisions | None = None,
    threads: int | None = None,
) -> CheckedEngines:
    """Measure every engine; returns the records with parity, latency and whether they share enrolments.

    Args:
        records: The engines.
        bundle: The folder that their files are in.
        deployment: The model's graphs and batch limit.
        reference: ``GRAPH/INPUT`` and ``GRAPH/OUTPUT``: real inputs as the runtime's preprocessing makes them, and
            the reference model's float32 outputs for them.
        advance: Called with the number of engines that have been measured, and of all.
        optional: Precisions whose engines may be left out.
        cpu_proxies: For those engines that cannot run here, by their names: graph name to the ONNX file that it is made
            of. These are run by ONNX Runtime on the processor, and held to the same tolerance.
        agreement: Compares engines with the graphs that they were compiled from, besides the reference model.
        decide: The comparison of decisions; None for the task's.
        threads: CPU threads for the engines; None leaves the choice to the vendor.

    Raises:
        ParityError: An engine is further from the reference than its precision allows, or does not compute what
            its graph says; the message names the graph, the engine and how far.
        BackendError: An engine cannot be opened or run here.
    """
    machine = machine_name()
    decide = decide or tasks.load(deployment.task).agreement
    with ExitStack() as stack:
        opened: dict[str, dict[str, Session]] = {}
        for record in records:
            if record.name in cpu_proxies:
                sessions = _open_cpu_proxy(cpu_proxies[record.name], deployment)
            else:
                sessions = open_graphs(record, deployment, lambda file: bundle / file, threads=threads)
            opened[record.name] = sessions
            for session in sessions.values():
                stack.callback(session.close)
        proved: list[EngineRecord] = []
        broken: dict[str, list[str]] = {}
        refused: list[str] = []
        arrays: dict[str, Array] = {}
        for number, record in enumerate(records, start=1):
            complaints: list[str] = []
            same_graph = _same_graph(record, proved, cpu_proxies)
            if same_graph is not None:
                measured = replace(
                    record,
                    graph_parity=same_graph.graph_parity,
                    shares_enrolments=same_graph.shares_enrolments,
                    recorded=same_graph.recorded,
                )
            else:
                is_proxy = record.name in cpu_proxies
                sessions = opened[record.name]
                measured, outputs = _prove(
                    record, sessions, reference, machine, complaints, decide=decide, is_proxy=is_proxy
                )
                if agreement is not None:
                    reopen = partial(_reopen, record, deployment, bundle)
                    outcome = agreement.check(measured, sessions, outputs, reopen=None if is_proxy else reopen)
                    measured = outcome.record
                    # An engine that deviates from its graph misses the reference for that reason, not for calibration.
                    complaints = list(outcome.complaints) or complaints
                    arrays |= outcome.arrays if not complaints else {}
            if record.precision in optional:
                refused += complaints
            elif complaints:
                broken[record.name] = complaints
            if not complaints:
                proved.append(measured)
            advance(number, len(records))
        if broken:
            lines = [complaint for complaints in broken.values() for complaint in complaints]
            raise ParityError("\n".join(lines), engines=tuple(broken))
        ran = [record for record in proved if record.name not in cpu_proxies]
        latency = interleaved(
            {record.name: one_image(opened[record.name], deployment, reference) for record in ran},
            seconds=_LATENCY_SECONDS * len(ran),
        )
    engines = tuple(
        replace(record, latency_ms=round(latency[record.name].p50_ms, 3)) if record.name in latency else record
        for record in proved
    )
    return CheckedEngines(engines, tuple(refused), arrays)


def _reopen(record: EngineRecord, deployment: Deployment, bundle: Path, threads: int) -> dict[str, Session]:
    return open_graphs(record, deployment, lambda file: bundle / file, threads=threads)


def _same_graph(
    record: EngineRecord, proved: Sequence[EngineRecord], cpu_proxies: Mapping[str, Mapping[str, Path]]
) -> EngineRecord | None:
    """An earlier engine of the same graphs whose graph parity is measured."""
    files = cpu_proxies.get(record.name)
    return next((other for other in proved if files and cpu_proxies.get(other.name) == files), None)


def _open_cpu_proxy(files: Mapping[str, Path], deployment: Deployment) -> dict[str, Session]:
    return {
        graph.name: Session(CpuProxy(files[graph.name]), graph, max_batch=deployment.max_batch)
        for graph in deployment.graphs
    }


def _prove(
    record: EngineRecord,
    sessions: Mapping[str, Session],
    reference: Mapping[str, Array],
    machine: str,
    broken: list[str],
    *,
    decide: CompareDecisions,
    is_proxy: bool,
) -> tuple[EngineRecord, Mapping[str, Array]]:
    """The record with its measured parity, and the engine's outputs.

    A line is added to ``broken`` for each graph beyond the tolerance.

    A CPU proxy measures the parity of an engine's graphs, not of the engine.
    """
    where = f"ONNX Runtime on {machine}" if is_proxy else machine
    measured = measure_engine(sessions, record.precision, reference, agreement=decide, machine=where)
    broken.extend(_complaint(record, parity, measured.parity.tolerance) for parity in measured.beyond)
    if is_proxy:
        proved = replace(record, graph_parity=measured.parity, shares_enrolments=measured.shares_enrolments)
    else:
        proved = replace(record, parity=measured.parity, shares_enrolments=measured.shares_enrolments)
    return proved, measured.outputs


def _complaint(record: EngineRecord, parity: GraphParity, tolerance: str) -> str:
    cure = {
        "fp32": "",
        "int8": "; calibrate on images like those it will see, or leave int8 out of --precision",
    }.get(record.precision, f"; leave {record.precision} out of --precision")
    return (
        f"graph {parity.graph!r} of the engine {record.name} does not compute what the reference model computes: "
        f"{distance_text(parity)}; allowed: {tolerance}{cure}"
    )
