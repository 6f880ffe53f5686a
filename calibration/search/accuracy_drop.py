"""How much an INT8 graph loses against the float model: the number that ``--max-drop`` bounds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runtime.bundle.manifest import Decisions
from runtime.bundle.spec import Graph
from runtime.common.arrays import Array
from runtime.parity.compare import compare_rows
from runtime.parity.measure import CompareDecisions


def decisions_of(
    graph: Graph, reference: Mapping[str, Array], found: Mapping[str, Array], agreement: CompareDecisions
) -> Decisions | None:
    """How often a graph's outputs lead to the reference's decision; None for a graph that decides nothing.

    Args:
        graph: The graph.
        reference: ``GRAPH/TENSOR``: PyTorch's outputs in float32.
        found: The engine's outputs for the same rows, by name.
        agreement: The task's comparison, see :meth:`runtime.tasks.TaskModule.agreement`.
    """
    return agreement(reference, {f"{graph.name}/{name}": array for name, array in found.items()})


def mean_cosine(graph: Graph, reference: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The mean cosine between rows, of the output where it is the least; NaN counts as -1."""
    means = [
        float(np.nan_to_num(compare_rows(reference[f"{graph.name}/{name}"], array)[1], nan=-1.0).mean())
        for name, array in found.items()
    ]
    return min(means)


def drop_of(
    graph: Graph, reference: Mapping[str, Array], found: Mapping[str, Array], agreement: CompareDecisions
) -> float:
    """What is lost, 0..2: the share of changed decisions (1 - mask IoU), or 1 - mean cosine if that is more.

    Decisions are what a user sees; the cosine does not depend on how many images there are to decide about, and is
    all that a graph without decisions has.
    """
    decisions = decisions_of(graph, reference, found, agreement)
    lost = 1.0 - mean_cosine(graph, reference, found)
    return max(lost, 0.0 if decisions is None else 1.0 - decisions.agreement, 0.0)
