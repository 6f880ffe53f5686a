"""The distance of an engine from the reference model, as a build's gate and ``edgevis verify`` measure it.

Inputs are real images: noise has let real miscompiles pass. Outputs are compared as tensors, and as the decisions
that they lead to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.bundle.manifest import Decisions, GraphParity
from runtime.bundle.spec import Graph, Precision, TensorSpec
from runtime.common.arrays import Array, unit_rows
from runtime.errors import IntegrityError
from runtime.sessions.session import Session

BATCH_SIZES = (1, 2, 5, 8)

TIE = 0.005
"""Cosines that differ by no more are a tie. Without it, of OSNet x0.25's nearest neighbours among 128 crops of the
wheels' photographs 7 % change at a mean cosine of 0.9991, where PKU-Reid's rank-1 changes by 0.6 points."""


# Whose masks an image's are compared with, to know what masks of another image would reach.
_OTHERS = 5


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest distance of a right engine of one precision from the reference model; None is any distance.

    Attributes:
        max_relative_error: Bound on ``max |engine - torch| / max |torch|``.
        min_cosine: Bound on the cosine of every row.
        mean_cosine: Bound on the mean of the rows' cosines.
    """

    max_relative_error: float | None = None
    min_cosine: float | None = None
    mean_cosine: float | None = None

    def holds(self, parity: GraphParity) -> bool:
        # Written so that NaN, which compares false with everything, fails.
        return (
            (self.max_relative_error is None or parity.max_relative_error <= self.max_relative_error)
            and (self.min_cosine is None or parity.min_cosine >= self.min_cosine)
            and (self.mean_cosine is None or parity.mean_cosine >= self.mean_cosine)
        )

    def __str__(self) -> str:
        bounds = (
            (self.max_relative_error, "max relative error <="),
            (self.min_cosine, "cosine >="),
            (self.mean_cosine, "mean cosine >="),
        )
        return ", ".join(f"{text} {bound:g}" for bound, text in bounds if bound is not None)


# FP32 engines differ from PyTorch only in the order of summation, on every row. What rounding costs shows in decisions,
# and one odd image (nearly blank, say) may lose its direction; the bound on the mean catches an engine that computes
# something else.
_FLIPPED_FROM = 1e-4
_MOST_FLIPPED = 0.01  # beyond this it is not single elements, but another precision or another function
TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(max_relative_error=_FLIPPED_FROM, min_cosine=0.99999),
    "fp16": Tolerance(mean_cosine=0.999),
    "bf16": Tolerance(mean_cosine=0.98),
    "int8": Tolerance(mean_cosine=0.95),
}


def golden_feeds(golden: Mapping[str, Array], graph: Graph) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inputs and the reference outputs of ``graph`` among the arrays of ``golden.npz``.

    Raises:
        IntegrityError: One of them is missing, or is not what the graph takes or makes.
    """
    rows: set[int] = set()

    def pick(tensors: Sequence[TensorSpec]) -> dict[str, Array]:
        picked = {}
        for tensor in tensors:
            name = f"{graph.name}/{tensor.name}"
            if name not in golden:
                raise IntegrityError(f"golden.npz has no array {name}; build the bundle again")
            array = picked[tensor.name] = golden[name]
            rows.update([len(array)] if tensor.batched and array.ndim else [])
            if array.dtype != tensor.dtype or not tensor.fits(array.shape) or len(rows) > 1:
                raise IntegrityError(
                    f"golden.npz: {name} is {array.shape} {array.dtype}, which does not fit the graph or the others; "
                    "build the bundle again"
                )
        return picked

    return pick(graph.inputs), pick(graph.outputs)


def compare_rows(expected: Array, actual: Array) -> tuple[float, Array]:
    """Max relative error, and the cosine of each row, in float64; NaN in ``actual`` gives NaN.

    A row is what belongs to one image; two rows that are all zero have cosine 1.
    """
    expected_rows = np.asarray(expected, np.float64).reshape(len(expected), -1)
    actual_rows = np.asarray(actual, np.float64).reshape(len(actual), -1)
    if expected_rows.shape != actual_rows.shape:
        return float("inf"), np.full(len(expected_rows), -1.0)
    scale = max(float(np.abs(expected_rows).max()), 1e-30)
    error = float(np.abs(expected_rows - actual_rows).max()) / scale
    norms = np.linalg.norm(expected_rows, axis=1) * np.linalg.norm(actual_rows, axis=1)
    same = (expected_rows == actual_rows).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return error, np.where(same, 1.0, (expected_rows * actual_rows).sum(axis=1) / norms)


def settle_flips(expected: Array, actual: Array, allowed: float) -> tuple[Array, float]:
    """The engine's output with allowed flips replaced, and the share of flipped elements.

    An element counts as flipped when it is further off than FP32 engines may be. The furthest ones, as many as are
    allowed, are given the expected value.

    Args:
        expected: The reference model's output.
        actual: The engine's output.
        allowed: The share of elements, 0..1, that may have flipped; where it is not 0, one may in any case.
    """
    if expected.shape != actual.shape:
        return actual, 1.0
    errors = np.nan_to_num(np.abs(actual.astype(np.float64) - expected), nan=np.inf).ravel()
    flipped = int((errors > _FLIPPED_FROM * max(float(np.abs(expected).max()), 1e-30)).sum())
    spared = min(flipped, math.ceil(allowed * errors.size))
    if not spared:
        return actual, flipped / errors.size
    furthest = np.argpartition(errors, errors.size - spared)[errors.size - spared :]
    settled = actual.copy()
    settled.ravel()[furthest] = expected.ravel()[furthest]
    return settled, flipped / errors.size


def measure_graph(
    session: Session,
    graph: Graph,
    golden: Mapping[str, Array],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> tuple[GraphParity, dict[str, Array]]:
    """Run an engine on real inputs at several batch sizes and compare it with the reference outputs.

    The first rows, as many as the largest batch, are run at every batch size; the others at the largest one. A batch
    size that the rows do not divide ends with a smaller batch.

    Args:
        session: The open engine.
        graph: The graph that it runs.
        golden: ``GRAPH/INPUT`` and ``GRAPH/OUTPUT``, as in ``golden.npz``.
        batch_sizes: Those above the number of rows are left out, and those above the smallest that is beyond what the
            session runs at once.

    Returns:
        The distance, and the engine's outputs for all rows at the largest batch size.
    """
    inputs, expected = golden_feeds(golden, graph)
    batched = {tensor.name for tensor in graph.inputs if tensor.batched}
    rows = min((len(inputs[name]) for name in batched), default=1)
    # Beyond the session's limit batches are run in chunks: the smallest such size shows that, others add nothing.
    beyond = min((size for size in batch_sizes if size > session.max_batch), default=max(batch_sizes))
    sizes = sorted(size for size in batch_sizes if size <= min(rows, beyond)) if batched else [1]
    outputs: dict[str, Array] = {}
    errors: list[float] = []
    cosines: list[Array] = []
    flipped = 0.0
    for size in sizes:
        shown = rows if size == sizes[-1] else sizes[-1]
        batch_outputs = run_in_batches(session, graph, inputs, size=size, rows=shown, finite=False)
        for tensor in graph.outputs:
            outputs[tensor.name] = batch_outputs[tensor.name]
            expected_rows = expected[tensor.name][:shown] if tensor.batched else expected[tensor.name]
            actual_rows = outputs[tensor.name]
            if graph.max_flipped:
                actual_rows, share = settle_flips(expected_rows, actual_rows, graph.max_flipped)
                flipped = max(flipped, share)
            error, cosine = compare_rows(expected_rows, actual_rows)
            errors.append(error)
            cosines.append(cosine)
    # np.max and np.min keep NaN, where max() and min() may lose it.
    every = np.concatenate(cosines)
    return GraphParity(
        graph.name, tuple(sizes), float(np.max(errors)), float(every.min()), float(every.mean()), flipped
    ), outputs


def run_in_batches(
    session: Session, graph: Graph, inputs: Mapping[str, Array], *, size: int, rows: int, finite: bool = False
) -> dict[str, Array]:
    """A graph's outputs for the first ``rows`` rows of ``inputs``, run ``size`` at a time.

    Args:
        session: The open engine.
        graph: The graph that it runs.
        inputs: One array for each input; those without a batch axis are given as they are.
        size: The batch size; the last batch may be smaller.
        rows: The number of rows.
        finite: As :meth:`runtime.sessions.session.Session.run` takes it; where outputs are measured, NaN is the worst
        distance.
    """
    parts = [session.run(feed, finite=finite) for feed in batches_of(graph, inputs, size=size, rows=rows)]
    return {
        tensor.name: np.concatenate([part[tensor.name] for part in parts]) if tensor.batched else parts[-1][tensor.name]
        for tensor in graph.outputs
    }


def batches_of(graph: Graph, inputs: Mapping[str, Array], *, size: int, rows: int) -> Iterator[dict[str, Array]]:
    """Yield the first ``rows`` rows of a graph's inputs, ``size`` at a time; inputs without a batch axis whole."""
    batched = {tensor.name for tensor in graph.inputs if tensor.batched}
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        yield {name: array[start:stop] if name in batched else array for name, array in inputs.items()}


def rows_of(graph: Graph, inputs: Mapping[str, Array]) -> int:
    """The number of rows of a graph's inputs; 1 where none has a batch axis."""
    return min((len(inputs[tensor.name]) for tensor in graph.inputs if tensor.batched), default=1)


def outputs_of(
    sessions: Mapping[str, Session], golden: Mapping[str, Array], *, finite: bool = False
) -> dict[str, Array]:
    """``GRAPH/OUTPUT``: what an engine gives for all rows of ``golden``, the largest batch at a time.

    Args:
        sessions: Graph name to open session.
        golden: ``GRAPH/INPUT`` and ``GRAPH/OUTPUT``, as in ``golden.npz``.
        finite: As of :func:`run_in_batches`.
    """
    outputs: dict[str, Array] = {}
    for session in sessions.values():
        graph = session.graph
        inputs, _ = golden_feeds(golden, graph)
        rows = rows_of(graph, inputs)
        graph_outputs = run_in_batches(session, graph, inputs, size=max(BATCH_SIZES), rows=rows, finite=finite)
        outputs |= {f"{graph.name}/{name}": array for name, array in graph_outputs.items()}
    return outputs


def nearest_agreement(reference: Array, measured: Array) -> Decisions:
    """Rank-1 agreement: the share of images with the same nearest neighbour by both encoders.

    ``measured`` queries ``reference``'s gallery, as an engine does that loads an enrolment of another. A neighbour
    that by the reference's own scores is nearer than the nearest less :data:`TIE` counts as the same: between those
    two the reference has no ground to decide, and any rounding turns it.

    Args:
        reference: (N, D) embeddings of N images by the reference model, N >= 2.
        measured: (N, D) embeddings of the same images by the engine.
    """
    expected_rows, actual_rows = unit_rows(reference), unit_rows(measured)
    scores, by_engine = expected_rows @ expected_rows.T, actual_rows @ expected_rows.T
    for table in (scores, by_engine):
        np.fill_diagonal(table, -np.inf)  # an image is not its own neighbour
    named = scores[np.arange(len(scores)), by_engine.argmax(axis=1)]
    best = scores.max(axis=1)
    return Decisions(
        metric="rank-1 agreement",
        agreement=float((named >= best - TIE).mean()),
        count=len(named),
        mean_cosine=float((expected_rows * actual_rows).sum(axis=1).mean()),
        chance=float((scores >= best[:, None] - TIE).sum() / max(len(scores) * (len(scores) - 1), 1)),
    )


def mask_agreement(reference: Array, measured: Array, *, mean_cosine: float | None = None) -> Decisions:
    """Mask IoU: the overlap of the masks that two sets of logits give, the mean over all masks.

    Two masks that are both empty agree.

    Args:
        reference: Logits of the reference model: (N, K, 2, h, w), background and object, or (N, C, h, w), one map for
            each class.
        measured: The engine's, of the same images.
        mean_cosine: The mean cosine of the rows that an enrolment holds.
    """
    expected, actual = _masks(reference), _masks(measured)
    overlap = _overlap(expected, actual)
    others = [
        _overlap(expected, np.roll(expected, shift, axis=0)).mean() for shift in range(1, min(len(expected), _OTHERS))
    ]
    chance = float(np.mean(others)) if others else 0.0
    return Decisions("mask IoU", float(overlap.mean()), int(overlap.size), mean_cosine, chance)


def _overlap(expected: npt.NDArray[np.bool_], actual: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The IoU of each mask; 1 where both are empty."""
    both = (expected & actual).sum(axis=(-2, -1))
    either = (expected | actual).sum(axis=(-2, -1))
    return np.where(either == 0, 1.0, both / np.maximum(either, 1))


def _masks(logits: Array) -> npt.NDArray[np.bool_]:
    if logits.ndim == 5:
        return np.asarray(logits[:, :, 1] > logits[:, :, 0])
    return np.asarray(logits > 0)


def decisions_text(decisions: Decisions | None) -> str:
    """The agreement of decisions, as a table's cell."""
    if decisions is None:
        return "–"
    kept = "" if decisions.interval is None else "; of accuracy {:.3f} to {:.3f} is kept".format(*decisions.interval)
    return f"{decisions.metric} {decisions.agreement:.3f} of {decisions.count}{kept}"


def distance_text(parity: GraphParity) -> str:
    """The distance of one graph, for messages."""
    flipped = f", {parity.flipped:.1e} of the elements decided otherwise" if 0 < parity.flipped < _MOST_FLIPPED else ""
    return (
        f"max relative error {parity.max_relative_error:.2e}, "
        f"cosine {parity.min_cosine:.6f} (mean {parity.mean_cosine:.6f}){flipped}"
    )


PARITY_NOT_MEASURED = (
    "parity not measured yet: this engine could not run where it was built; the distance shown is that of its graph, "
    "run by ONNX Runtime on the processor. On the device: edgevis build-engine BUNDLE"
)
DISTANCE_HEADERS = ("max rel. error", "min cosine", "mean cosine")


def distance_cells(parities: Sequence[GraphParity]) -> tuple[str, str, str]:
    """The worst distance of an engine's graphs, as a table's cells under :data:`DISTANCE_HEADERS`."""
    if not parities:
        return ("–", "–", "–")
    flipped = max(parity.flipped for parity in parities)
    shown = f" (flipped {flipped:.0e})" if 0 < flipped < _MOST_FLIPPED else ""
    return (
        f"{max(parity.max_relative_error for parity in parities):.1e}{shown}",
        f"{min(parity.min_cosine for parity in parities):.6f}",
        f"{min(parity.mean_cosine for parity in parities):.6f}",
    )
