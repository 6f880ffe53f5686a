"""Leave INT8 out if the images cannot show its loss: a measure that no engine could fail proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from calibration.search.accuracy_drop import decisions_of
from export.request import UNTRAINED, BuildProgress
from export.state import BuildState
from runtime.bundle.spec import Deployment, Precision
from runtime.common.arrays import Array
from runtime.errors import InputError
from runtime.parity.measure import CompareDecisions


def run(state: BuildState, progress: BuildProgress) -> None:
    """Remove INT8 from ``precisions`` if its loss cannot be measured; warn of random weights, which are not judged.

    Raises:
        InputError: Nothing would be left.
    """
    if not state.weights.trained:
        progress.warn(UNTRAINED)
        return
    if "int8" not in state.precisions:
        return
    if not (reason := unmeasurable_text(state.deployment, state.reference, state.compare_decisions)):
        return
    max_drop = state.max_drop
    state.precisions = without_int8(state.precisions, reason, max_drop=max_drop, warn=progress.warn)
    if "int8" not in state.precisions:
        state.left_out = tuple(f"{name}-int8" for name in state.target.compilers["int8"])


def unmeasurable_text(deployment: Deployment, reference: Mapping[str, Array], agreement: CompareDecisions) -> str:
    """The reason why INT8's loss cannot be measured on these images; empty if it can.

    Args:
        deployment: The model's graphs.
        reference: ``GRAPH/OUTPUT``: the reference model's outputs for the verification images.
        agreement: The comparison of decisions.
    """
    for graph in deployment.image_graphs:
        outputs = {tensor.name: reference[f"{graph.name}/{tensor.name}"] for tensor in graph.outputs}
        decisions = decisions_of(graph, reference, outputs, agreement)
        if decisions is not None and not decisions.measurable:
            return (
                f"the model hardly tells these images apart: an engine whose outputs say nothing of the image would "
                f"reach a {decisions.metric} of {decisions.chance:.2f}, so that no figure here shows what INT8 loses"
            )
    return ""


def without_int8(
    precisions: Sequence[Precision], reason: str, *, max_drop: float, warn: Callable[[str], None]
) -> tuple[Precision, ...]:
    """The precisions that are built although INT8 cannot be measured.

    Args:
        precisions: The requested precisions.
        reason: The reason why it cannot be measured.
        max_drop: 1 asks for no measure: INT8 is built, and does not count as passed.
        warn: Called with the warning.

    Raises:
        InputError: Nothing would be left.
    """
    cure = "give images as the model will see them, of different persons or things, with --calibration-data"
    if max_drop >= 1:
        warn(f"INT8 is not measurable: {reason}. It is built, because --max-drop 1 asks for no measure; {cure}")
        return tuple(precisions)
    left = tuple(precision for precision in precisions if precision != "int8")
    if not left:
        raise InputError(f"INT8 is not measurable: {reason}; {cure}, or accept it unmeasured with --max-drop 1")
    warn(
        f"INT8 is not measurable: {reason}. It is not in the bundle; {cure}, or accept it unmeasured with --max-drop 1"
    )
    return left
