"""How far an engine is from the PyTorch model: the measures that a build's gate and ``edgevis verify`` share.

Inputs are real images: noise has let real miscompiles pass. Outputs are compared as tensors, and as the decisions
that they lead to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.arrays import Array, unit_rows
from runtime.errors import IntegrityError
from runtime.manifest import Decisions, GraphParity
from runtime.session import Session
from runtime.spec import Graph, Precision, TensorSpec

BATCH_SIZES = (1, 2, 5, 8)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an engine of one precision may be from the PyTorch model before it counts as wrong.

    Attributes:
        max_relative_error: Bound on ``max |engine - torch| / max |torch|``; None where it is measured only.
        min_cosine: Bound on the cosine of every row.
    """

    max_relative_error: float | None
    min_cosine: float

    def holds(self, parity: GraphParity) -> bool:
        # Written so that NaN, which compares false with everything, fails.
        close = self.max_relative_error is None or parity.max_relative_error <= self.max_relative_error
        return close and parity.min_cosine >= self.min_cosine

    def __str__(self) -> str:
        error = "" if self.max_relative_error is None else f"max relative error <= {self.max_relative_error:g}, "
        return f"{error}cosine >= {self.min_cosine:g}"


# FP32 engines differ from PyTorch only in the order of summation. The rounded precisions are judged by their
# decisions; the bound on the cosine only catches an engine that computes something else.
TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(1e-4, 0.99999),
    "fp16": Tolerance(None, 0.99),
    "bf16": Tolerance(None, 0.98),
    "int8": Tolerance(None, 0.8),
}


def golden_feeds(golden: Mapping[str, Array], graph: Graph) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inputs and the PyTorch outputs of ``graph`` among the arrays of ``golden.npz``.

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


def compare_rows(expected: Array, actual: Array) -> tuple[float, float]:
    """Max relative error and the smallest cosine of a row, both in float64; NaN in ``actual`` gives NaN.

    A row is what belongs to one image; two rows that are all zero have cosine 1.
    """
    wanted = np.asarray(expected, np.float64).reshape(len(expected), -1)
    found = np.asarray(actual, np.float64).reshape(len(actual), -1)
    if wanted.shape != found.shape:
        return float("inf"), -1.0
    scale = max(float(np.abs(wanted).max()), 1e-30)
    error = float(np.abs(wanted - found).max()) / scale
    norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    same = (wanted == found).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(same, 1.0, (wanted * found).sum(axis=1) / norms)
    return error, float(cosine.min())


def measure_graph(
    session: Session,
    graph: Graph,
    golden: Mapping[str, Array],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> GraphParity:
    """Run an engine on the golden inputs at several batch sizes and compare it with the PyTorch outputs.

    Every golden row is run at every batch size; a batch size that the rows do not divide ends with a smaller batch.
    """
    inputs, outputs = golden_feeds(golden, graph)
    batched = {tensor.name for tensor in graph.inputs if tensor.batched}
    rows = min((len(inputs[name]) for name in batched), default=1)
    sizes = tuple(size for size in batch_sizes if size <= rows) if batched else (1,)
    errors, cosines = [], []
    for size in sizes:
        for start in range(0, rows, size):
            part = slice(start, start + size)
            actual = session.run({name: array[part] if name in batched else array for name, array in inputs.items()})
            for tensor in graph.outputs:
                expected = outputs[tensor.name][part] if tensor.batched else outputs[tensor.name]
                error, cosine = compare_rows(expected, actual[tensor.name])
                errors.append(error)
                cosines.append(cosine)
    # np.max and np.min keep NaN, where max() and min() may lose it.
    return GraphParity(graph.name, sizes, float(np.max(errors)), float(np.min(cosines)))


def nearest_agreement(reference: Array, measured: Array) -> Decisions:
    """Rank-1 agreement: for how many images both encoders name the same nearest neighbour.

    The first half of the rows is the gallery, the second half the queries; ``measured`` queries ``reference``'s
    gallery, as an engine does that loads an enrolment of another.

    Args:
        reference: (N, D) embeddings of N images by the PyTorch model.
        measured: (N, D) embeddings of the same images by the engine.
    """
    wanted, found = unit_rows(reference), unit_rows(measured)
    middle = len(wanted) // 2
    gallery = wanted[:middle]
    by_reference = (wanted[middle:] @ gallery.T).argmax(axis=1)
    by_engine = (found[middle:] @ gallery.T).argmax(axis=1)
    return Decisions(
        metric="rank-1 agreement",
        agreement=float((by_reference == by_engine).mean()),
        count=len(by_engine),
        mean_cosine=float((wanted * found).sum(axis=1).mean()),
    )
