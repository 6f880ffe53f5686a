"""Prove a bundle again on the machine where it lies: every file's hash, every engine's parity and recorded outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.arrays import Array
from runtime.bundle import Bundle
from runtime.errors import BackendError, MissingDependencyError, UnavailableError, UnknownBackendError
from runtime.manifest import EngineRecord, GraphParity
from runtime.opening import open_sessions
from runtime.parity import BATCH_SIZES, distance_text
from runtime.proving import measure_engine
from runtime.recorded import Deviation, deviation_text, deviations, held_to_text, read_recorded

NOT_RECORDED = (
    "the bundle is of an older edgevis, which recorded no outputs of this engine: it was held to the tolerance of its "
    "precision alone, within which a faulty engine may lie; build the bundle again"
)


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """What came out for one engine.

    Attributes:
        engine: Its name.
        status: ``passed``, ``failed``, or ``not run`` where the machine lacks its backend, package or device.
        tolerance: What it was held to.
        graphs: The measured distance of each graph from the PyTorch outputs in ``golden.npz``.
        reason: Why it failed or was not run, or what it could not be held to.
        recorded: How far its outputs are from those that the build recorded; empty where it recorded none.
    """

    engine: str
    status: str
    tolerance: str
    graphs: tuple[GraphParity, ...] = ()
    reason: str = ""
    recorded: tuple[Deviation, ...] = ()


def verify_bundle(
    bundle: Bundle, *, threads: int | None = None, batch_sizes: Sequence[int] = BATCH_SIZES
) -> list[EngineCheck]:
    """Check all files of a bundle, then run each of its engines on the golden inputs.

    Args:
        bundle: The bundle.
        threads: CPU threads for the engines; None leaves the choice to the vendor.
        batch_sizes: What the recorded outputs are compared at.

    Raises:
        IntegrityError: A file is missing or altered.
    """
    bundle.verify_files()
    golden = bundle.golden()
    return [_check(bundle, record, golden, threads, batch_sizes) for record in bundle.manifest.engines]


def _check(
    bundle: Bundle, record: EngineRecord, golden: dict[str, Array], threads: int | None, batch_sizes: Sequence[int]
) -> EngineCheck:
    held_to = held_to_text(record)
    try:
        sessions = open_sessions(bundle, record, threads=threads)
    except (MissingDependencyError, UnavailableError, UnknownBackendError) as error:
        return EngineCheck(record.name, "not run", held_to, reason=str(error))
    except BackendError as error:
        return EngineCheck(record.name, "failed", held_to, reason=str(error))
    try:
        measured = measure_engine(sessions, record.precision, golden, machine="")
        known = read_recorded(bundle, record)
        apart = () if known is None else deviations(record, sessions, golden, known, batch_sizes=batch_sizes)
    except BackendError as error:
        return EngineCheck(record.name, "failed", held_to, reason=str(error))
    finally:
        for session in sessions.values():
            session.close()
    reasons = [f"graph {parity.graph!r}: {_distance(parity)}" for parity in measured.beyond]
    reasons += [deviation_text(deviation) for deviation in apart if not deviation.holds]
    status = "failed" if reasons else "passed"
    if record.precision != "fp32" and not apart:
        reasons.append(NOT_RECORDED)
    return EngineCheck(record.name, status, held_to, measured.proof.graphs, "; ".join(reasons), apart)


def _distance(parity: GraphParity) -> str:
    if math.isfinite(parity.max_relative_error):
        return distance_text(parity)
    return "NaN or infinity in the engine's outputs or in the golden ones"
