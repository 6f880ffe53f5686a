"""The parity gate: every final engine file is opened again from the disk and compared with the PyTorch model."""

from __future__ import annotations

import platform
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from runtime.arrays import Array
from runtime.errors import ParityError
from runtime.latency import interleaved
from runtime.manifest import Decisions, EngineRecord, GraphParity, Proof
from runtime.parity import (
    TOLERANCES,
    distance_text,
    golden_feeds,
    mask_agreement,
    measure_graph,
    nearest_agreement,
)
from runtime.selection import open_graphs
from runtime.session import Session
from runtime.spec import Deployment, Graph, Precision

# An enrolment made by one engine may be loaded by another when the build has measured that this hardly changes a
# decision: of a hundred queries in one engine's embeddings, against a gallery in the FP32 model's, at most five find
# another nearest neighbour, and the embeddings point the same way.
SHARING_MIN_AGREEMENT = 0.95
SHARING_MIN_MEAN_COSINE = 0.99

_LATENCY_SECONDS = 0.4  # for each engine


def prove_engines(
    records: Sequence[EngineRecord],
    *,
    bundle: Path,
    deployment: Deployment,
    reference: Mapping[str, Array],
    advance: Callable[[int, int], None],
    optional: Container[Precision] = (),
) -> tuple[tuple[EngineRecord, ...], tuple[str, ...]]:
    """The records with their proofs, latencies and whether they share enrolments with the FP32 model.

    Args:
        records: The engines.
        bundle: The folder that their files are in.
        deployment: The model's graphs and batch limit.
        reference: ``GRAPH/INPUT`` and ``GRAPH/OUTPUT``: real inputs as the runtime's preprocessing makes them, and
            what the PyTorch model makes of them in float32.
        advance: Called with the number of engines that have been measured, and of all.
        optional: Precisions whose engines may be left out.

    Returns:
        The engines that hold their tolerance, and a sentence about each graph of an optional one that does not.

    Raises:
        ParityError: An engine is further from the PyTorch model than its precision allows; the message names the
            graph, the engine and how far.
        BackendError: An engine cannot be opened or run here.
    """
    machine = machine_name()
    with ExitStack() as stack:
        opened: dict[str, dict[str, Session]] = {}
        for record in records:
            sessions = open_graphs(record, deployment, lambda file: bundle / file, threads=None)
            opened[record.name] = sessions
            for session in sessions.values():
                stack.callback(session.close)
        proved: list[EngineRecord] = []
        broken: list[str] = []
        refused: list[str] = []
        for number, record in enumerate(records, start=1):
            complaints: list[str] = []
            measured = _prove(record, opened[record.name], reference, machine, complaints)
            (refused if record.precision in optional else broken).extend(complaints)
            if not complaints:
                proved.append(measured)
            advance(number, len(records))
        if broken:
            raise ParityError("\n".join(broken))
        latency = interleaved(
            {record.name: one_image(opened[record.name], deployment, reference) for record in proved},
            seconds=_LATENCY_SECONDS * len(proved),
        )
    engines = tuple(replace(record, latency_ms=round(latency[record.name].p50_ms, 3)) for record in proved)
    return engines, tuple(refused)


def embedding_output(deployment: Deployment) -> tuple[Graph, str] | None:
    """The graph whose output is an embedding (N, D), and that output's name; None for a model without."""
    for graph in deployment.graphs:
        for tensor in graph.outputs:
            if tensor.name == "embedding" and tensor.batched and len(tensor.shape) == 2:
                return graph, tensor.name
    return None


def machine_name() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def one_image(
    sessions: Mapping[str, Session], deployment: Deployment, reference: Mapping[str, Array]
) -> Callable[[], object]:
    """Runs one image through the graph that a prediction runs: the last one.

    What that is given by an enrolment is resident.
    """
    session = sessions[deployment.graphs[-1].name]
    inputs, _ = golden_feeds(reference, session.graph)
    batched = {tensor.name for tensor in session.graph.inputs if tensor.batched}
    resident = session.prepare({name: array for name, array in inputs.items() if name not in batched})
    feeds = {name: array[:1] for name, array in inputs.items() if name in batched}
    return lambda: session.run(feeds, resident)


def _prove(
    record: EngineRecord,
    sessions: Mapping[str, Session],
    reference: Mapping[str, Array],
    machine: str,
    broken: list[str],
) -> EngineRecord:
    """The record with its proof; a line is added to ``broken`` for each graph beyond the tolerance."""
    tolerance = TOLERANCES[record.precision]
    parities, passed, decisions = [], True, None
    for session in sessions.values():
        parity, actual = measure_graph(session, session.graph, reference)
        parities.append(parity)
        if not tolerance.holds(parity):
            passed = False
            broken.append(_complaint(record, parity, str(tolerance)))
        graph = session.graph.name
        if "embedding" in actual:
            decisions = nearest_agreement(reference[f"{graph}/embedding"], actual["embedding"])
        elif "logits" in actual and actual["logits"].ndim >= 4:
            # What an enrolment of few-shot segmentation holds is made by the graphs before.
            cosine = min(item.mean_cosine for item in parities)
            decisions = mask_agreement(reference[f"{graph}/logits"], actual["logits"], mean_cosine=cosine)
    proof = Proof(passed, str(tolerance), machine, tuple(parities), decisions)
    return replace(record, proof=proof, shares_enrolments=passed and _shares(decisions))


def _shares(decisions: Decisions | None) -> bool:
    if decisions is None or decisions.mean_cosine is None:
        return False
    return decisions.agreement >= SHARING_MIN_AGREEMENT and decisions.mean_cosine >= SHARING_MIN_MEAN_COSINE


def _complaint(record: EngineRecord, parity: GraphParity, tolerance: str) -> str:
    cure = {
        "fp32": "",
        "int8": "; calibrate on images like those it will see, or leave int8 out of --precision",
    }.get(record.precision, f"; leave {record.precision} out of --precision")
    return (
        f"graph {parity.graph!r} of the engine {record.name} does not compute what the PyTorch model computes: "
        f"{distance_text(parity)}; allowed: {tolerance}{cure}"
    )
