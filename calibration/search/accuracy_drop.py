"""The accuracy that an engine loses against the float model: the number that ``--max-drop`` bounds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runtime.bundle.manifest import Decisions
from runtime.bundle.spec import Graph
from runtime.common.arrays import Array
from runtime.parity.compare import compare_rows
from runtime.parity.measure import CompareDecisions


def decisions_of(
    graph: Graph, reference: Mapping[str, Array], actual: Mapping[str, Array], agreement: CompareDecisions
) -> Decisions | None:
    """The agreement of a graph's decisions with the reference's; None for a graph without decisions.

    Args:
        graph: The graph.
        reference: ``GRAPH/TENSOR``: PyTorch's outputs, float32.
        actual: The engine's outputs for the same rows, by name.
        agreement: The task's comparison, see :meth:`runtime.tasks.TaskModule.agreement`.
    """
    return agreement(reference, {f"{graph.name}/{name}": array for name, array in actual.items()})


def mean_cosine(graph: Graph, reference: Mapping[str, Array], actual: Mapping[str, Array]) -> float:
    """The mean cosine between rows, -1..1, of the output where it is the least; NaN counts as -1."""
    means = [
        float(np.nan_to_num(compare_rows(reference[f"{graph.name}/{name}"], array)[1], nan=-1.0).mean())
        for name, array in actual.items()
    ]
    return min(means)


def drop_of(
    graph: Graph, reference: Mapping[str, Array], actual: Mapping[str, Array], agreement: CompareDecisions
) -> float:
    """The drop of one graph, see :func:`accuracy_drop`."""
    return accuracy_drop(mean_cosine(graph, reference, actual), decisions_of(graph, reference, actual, agreement))


def accuracy_drop(mean_cosine: float, decisions: Decisions | None) -> float:
    """The share of changed decisions (1 - mask IoU), or 1 - mean cosine if that is more: 0..2.

    Decisions are what a user sees; the cosine does not depend on how many images there are to decide about, and is
    the only measure of a graph without decisions. Where the decisions are decisive, it does not count.
    """
    if decisions is not None and decisions.decisive:
        return max(1.0 - decisions.agreement, 0.0)
    return max(1.0 - mean_cosine, 0.0 if decisions is None else 1.0 - decisions.agreement, 0.0)
