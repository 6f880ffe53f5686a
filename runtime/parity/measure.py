"""Measure an engine: its outputs and its decisions against the reference model's, and the time of one image.

A build measures the engines that run on its own machine. A device measures those that only run there, with
``golden.npz``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from runtime.bundle.manifest import Decisions, GraphParity, ParityReport
from runtime.bundle.spec import Deployment, Precision
from runtime.common.arrays import Array
from runtime.parity.compare import TOLERANCES, golden_feeds, measure_graph
from runtime.sessions.session import Session

# An enrolment made by one engine may be loaded by another when it was measured that this hardly changes a decision: of
# a hundred queries in one engine's embeddings, against a gallery in the FP32 model's, at most five find another nearest
# neighbour, and the embeddings point the same way. Two neighbours that are almost equally near change places at less,
# so a share of 1 would refuse engines over ties.
SHARING_MIN_AGREEMENT = 0.95
SHARING_MIN_MEAN_COSINE = 0.99


CompareDecisions: TypeAlias = Callable[[Mapping[str, Array], Mapping[str, Array]], Decisions | None]
"""How a task compares outputs, see :meth:`runtime.tasks.TaskModule.agreement`."""


@dataclass(frozen=True, slots=True)
class EngineMeasurement:
    """The measured distance of one engine from the reference model.

    Attributes:
        parity: The report; ``passed`` says whether every graph held the tolerance.
        beyond: The graphs that did not.
        shares_enrolments: Whether its embeddings may be exchanged with the FP32 model's.
        outputs: ``GRAPH/OUTPUT`` to the engine's outputs for all rows, at the largest batch size.
    """

    parity: ParityReport
    beyond: tuple[GraphParity, ...]
    shares_enrolments: bool
    outputs: Mapping[str, Array]


def measure_engine(
    sessions: Mapping[str, Session],
    precision: Precision,
    reference: Mapping[str, Array],
    *,
    agreement: CompareDecisions,
    machine: str,
) -> EngineMeasurement:
    """Run all graphs of an engine on real inputs and compare them with the reference model.

    Args:
        sessions: Graph name to open session.
        precision: The engine's precision, which decides its tolerance; that of graphs over a set is FP32's.
        reference: ``GRAPH/INPUT`` and ``GRAPH/OUTPUT``, as in ``golden.npz``.
        agreement: The task's comparison of decisions.
        machine: The processor or accelerator that it runs on, for the report.

    Raises:
        EngineError: The engine failed.
    """
    tolerance = TOLERANCES[precision]
    parities: list[GraphParity] = []
    beyond: list[GraphParity] = []
    outputs: dict[str, Array] = {}
    for session in sessions.values():
        parity, actual = measure_graph(session, session.graph, reference)
        parities.append(parity)
        if not (TOLERANCES["fp32"] if session.graph.set_of else tolerance).holds(parity):
            beyond.append(parity)
        graph = session.graph.name
        outputs |= {f"{graph}/{name}": array for name, array in actual.items()}
    decisions = agreement(reference, outputs)
    if decisions is not None and decisions.mean_cosine is None:
        # Without embeddings an enrolment holds what a graph gives, such as support features.
        decisions = replace(decisions, mean_cosine=min(item.mean_cosine for item in parities))
    report = ParityReport(not beyond, str(tolerance), machine, tuple(parities), decisions)
    shares = not beyond and _shares(decisions, rounds=precision != "fp32")
    return EngineMeasurement(report, tuple(beyond), shares, outputs)


def one_image(
    sessions: Mapping[str, Session], deployment: Deployment, reference: Mapping[str, Array]
) -> Callable[[], object]:
    """A call that runs one image through the graph that a prediction runs: the last one that takes images.

    What that is given by an enrolment is resident.
    """
    session = sessions[deployment.image_graphs[-1].name]
    inputs, _ = golden_feeds(reference, session.graph)
    batched = {tensor.name for tensor in session.graph.inputs if tensor.batched}
    resident = session.prepare({name: array for name, array in inputs.items() if name not in batched})
    feeds = {name: array[:1] for name, array in inputs.items() if name in batched}
    return lambda: session.run(feeds, resident)


def _shares(decisions: Decisions | None, *, rounds: bool) -> bool:
    if decisions is None or decisions.mean_cosine is None:
        return False
    if rounds and not decisions.measurable:  # of an engine that holds FP32's tolerance, the outputs say enough
        return False
    return decisions.agreement >= SHARING_MIN_AGREEMENT and decisions.mean_cosine >= SHARING_MIN_MEAN_COSINE
