"""The recorded outputs of an engine at its build, and the comparison of an engine with them.

A tolerance for each precision tells an INT8 engine that computes something else from a right one only where the fault
is gross: rounding alone may cost an embedding a mean cosine of 0.98. So a build records the engine's own outputs on
the golden inputs (``recorded.npz``, ``ENGINE/GRAPH/OUTPUT``) and how far right runs of it lie apart, and whoever opens
the engine later holds it to both.

Differences are relative: the root mean square, over the rows, of ``|actual - expected| / |expected|``. An embedding
whose cosine to another is ``c`` differs from it by about ``sqrt(2 - 2 c)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord, OutputRecord
from runtime.common import limits
from runtime.common.arrays import Array, read_arrays
from runtime.common.machine import environment
from runtime.errors import IntegrityError
from runtime.parity.compare import (
    BATCH_SIZES,
    TOLERANCES,
    golden_feeds,
    rows_of,
    run_in_batches,
    settle_flips,
)
from runtime.sessions.session import Session

FILE = "recorded.npz"

FLOOR = 1e-4
"""What float32 engines may differ by: the order of summation."""
# Of what was measured, which is the largest of a few runs: others may lie a little further apart. On the same kernels
# another order of summation turns some roundings over, fewer than kernels that fuse otherwise do: OSNet x0.25 in INT8
# lies 0.011 apart with another level of ONNX Runtime's optimisation, 0.018 with AVX-512 VNNI instead of AMX, 0.026 from
# the independent run, and 0.000 with other thread counts and batch sizes.
_VARIATION, _SAME_KERNELS, _OTHER_KERNELS = 1.5, 0.5, 2.0


@dataclass(frozen=True, slots=True)
class Deviation:
    """The distance of an engine's output from the recorded one, the worst over the batch sizes.

    Attributes:
        output: ``GRAPH/OUTPUT``.
        difference: As above; infinite where the engine makes NaN or another shape.
        allowed: The bound of the interval, see :func:`allowed`.
        same_machine: Whether the bound is that of the same kernels.
    """

    output: str
    difference: float
    allowed: float
    same_machine: bool

    @property
    def holds(self) -> bool:
        """Whether the distance is within its bound."""
        return self.difference <= self.allowed


def difference(expected: Array, actual: Array, *, flipped: float = 0.0) -> float:
    """The relative difference of two arrays with one row for each image; infinite for NaN or other shapes.

    Args:
        expected: (N, ...) numbers.
        actual: The same shape.
        flipped: The share of elements, 0..1, that a discontinuity may have decided otherwise, see
            :attr:`runtime.bundle.spec.Graph.max_flipped`: the furthest ones are left out. A fault moves all elements,
            a flip a few of them far: what these may add would hide the fault.
    """
    if expected.shape != actual.shape or not np.isfinite(actual).all():
        return math.inf
    if flipped:
        actual = settle_flips(expected, actual, flipped)[0]
    reference = np.asarray(expected, np.float64).reshape(len(expected), -1)
    measured = np.asarray(actual, np.float64).reshape(len(actual), -1)
    with np.errstate(invalid="ignore", over="ignore"):
        energy = (reference**2).sum(axis=1)
        error = ((measured - reference) ** 2).sum(axis=1)
    # A row that is (nearly) zero among others is measured by what the others are.
    scale = np.maximum(energy, max(1e-6 * float(energy.mean()), 1e-30))
    relative = float((error / scale).mean())
    return math.sqrt(relative) if math.isfinite(relative) else math.inf


def allowed(record: OutputRecord, *, same_kernels: bool) -> float:
    """The allowed distance of an engine from its recorded output.

    Args:
        record: What was measured of right runs.
        same_kernels: On the build's machine and with the build's packages the kernels are the same, and only their
            order of summation is open; elsewhere they may round in other places, as the build's engine and an
            independent run of its graph do.
    """
    if same_kernels:
        return _VARIATION * record.variation + _SAME_KERNELS * record.kernels + FLOOR
    return _OTHER_KERNELS * max(record.variation, record.kernels) + FLOOR


def read_recorded(bundle: Bundle, record: EngineRecord) -> dict[str, Array] | None:
    """``GRAPH/OUTPUT`` to the recorded output for the first golden rows; None if nothing was recorded.

    Raises:
        IntegrityError: The file is missing or altered, or lacks an output.
    """
    if record.recorded is None:
        return None
    arrays = read_arrays(
        bundle.file(FILE),
        error=IntegrityError,
        max_bytes=limits.max_golden_bytes(),
        variable="EDGEVIS_MAX_GOLDEN_BYTES",
    )
    outputs = {}
    for item in record.recorded.outputs:
        name = f"{record.recorded.engine}/{item.output}"
        if name not in arrays or not arrays[name].ndim:
            raise IntegrityError(f"{FILE} has no array {name}; build the bundle again")
        outputs[item.output] = arrays[name]
    return outputs


def deviations(
    record: EngineRecord,
    sessions: Mapping[str, Session],
    golden: Mapping[str, Array],
    recorded: Mapping[str, Array],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    rows: int | None = None,
) -> tuple[Deviation, ...]:
    """Run an engine on the golden inputs and compare its outputs with the recorded ones.

    Args:
        record: The engine; it has ``recorded``.
        sessions: Graph name to open session.
        golden: ``GRAPH/INPUT``, as in ``golden.npz``.
        recorded: As :func:`read_recorded` returns it.
        batch_sizes: The batch sizes to run; those above the number of rows are left out.
        rows: At most so many rows; None for all that were recorded.

    Raises:
        IntegrityError: A recorded array is not what the graph makes.
        EngineError: The engine failed.
    """
    assert record.recorded is not None  # noqa: S101 - the caller asked for its outputs
    measures = {item.output: item for item in record.recorded.outputs}
    same = _same_kernels(record)
    result = []
    for session in sessions.values():
        graph = session.graph
        expected_outputs = {
            tensor.name: recorded[f"{graph.name}/{tensor.name}"]
            for tensor in graph.outputs
            if f"{graph.name}/{tensor.name}" in measures
        }
        if not expected_outputs:
            continue
        inputs, _ = golden_feeds(golden, graph)
        worst = dict.fromkeys(expected_outputs, 0.0)
        in_batches = {tensor.name for tensor in graph.outputs if tensor.batched}
        count = min((len(array) for name, array in expected_outputs.items() if name in in_batches), default=1)
        available = rows_of(graph, inputs)
        if count > available:
            raise IntegrityError(f"{FILE} has more rows than golden.npz for {graph.name!r}; build the bundle again")
        shown = min(count, rows or count)
        for size in sorted({min(size, shown) for size in batch_sizes}):
            actual = run_in_batches(session, graph, inputs, size=size, rows=shown)
            for name, array in expected_outputs.items():
                expected = array[:shown] if name in in_batches else array
                worst[name] = max(worst[name], difference(expected, actual[name], flipped=graph.max_flipped))
        for name, value in worst.items():
            item = measures[f"{graph.name}/{name}"]
            bound = allowed(item, same_kernels=same)
            result.append(Deviation(item.output, value, bound, same))
    return tuple(result)


def deviation_text(deviation: Deviation) -> str:
    """The output that deviates and its distance, as text for messages."""
    whose = "on the same machine" if deviation.same_machine else "on another machine's kernels"
    return (
        f"{deviation.output} is {deviation.difference:.2e} from what this engine gave when it was built; "
        f"right runs of it {whose} lie within {deviation.allowed:.2e}"
    )


def held_to_text(record: EngineRecord) -> str:
    """The criterion for an engine, as text: its recorded outputs or, without any, the tolerance of its precision."""
    if record.recorded is None or not record.recorded.outputs:
        return str(TOLERANCES[record.precision])
    bound = max(allowed(item, same_kernels=_same_kernels(record)) for item in record.recorded.outputs)
    return f"recorded outputs within {bound:.1e}"


def _same_kernels(record: EngineRecord) -> bool:
    return record.recorded is not None and dict(record.recorded.environment) == environment(record.backend)
