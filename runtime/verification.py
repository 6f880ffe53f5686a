"""Prove a bundle again on the machine where it lies: every file's hash, every engine's parity."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime.arrays import Array
from runtime.bundle import Bundle
from runtime.errors import BackendError, MissingDependencyError, UnavailableError, UnknownBackendError
from runtime.manifest import EngineRecord, GraphParity
from runtime.opening import open_sessions
from runtime.parity import TOLERANCES, distance_text
from runtime.proving import measure_engine


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """What came out for one engine.

    Attributes:
        engine: Its name.
        status: ``passed``, ``failed``, or ``not run`` where the machine lacks its backend, package or device.
        tolerance: What it was held to.
        graphs: The measured distance of each graph from the PyTorch outputs in ``golden.npz``.
        reason: Why it failed or was not run.
    """

    engine: str
    status: str
    tolerance: str
    graphs: tuple[GraphParity, ...] = ()
    reason: str = ""


def verify_bundle(bundle: Bundle) -> list[EngineCheck]:
    """Check all files of a bundle, then run each of its engines on the golden inputs.

    Raises:
        IntegrityError: A file is missing or altered.
    """
    bundle.verify_files()
    golden = bundle.golden()
    return [_check(bundle, record, golden) for record in bundle.manifest.engines]


def _check(bundle: Bundle, record: EngineRecord, golden: dict[str, Array]) -> EngineCheck:
    tolerance = TOLERANCES[record.precision]
    try:
        sessions = open_sessions(bundle, record, threads=None)
    except (MissingDependencyError, UnavailableError, UnknownBackendError) as error:
        return EngineCheck(record.name, "not run", str(tolerance), reason=str(error))
    except BackendError as error:
        return EngineCheck(record.name, "failed", str(tolerance), reason=str(error))
    try:
        measured = measure_engine(sessions, record.precision, golden, machine="")
    except BackendError as error:
        return EngineCheck(record.name, "failed", str(tolerance), reason=str(error))
    finally:
        for session in sessions.values():
            session.close()
    reason = "; ".join(f"graph {parity.graph!r}: {_distance(parity)}" for parity in measured.beyond)
    status = "passed" if measured.proof.passed else "failed"
    return EngineCheck(record.name, status, str(tolerance), measured.proof.graphs, reason)


def _distance(parity: GraphParity) -> str:
    if math.isfinite(parity.max_relative_error):
        return distance_text(parity)
    return "NaN or infinity in the engine's outputs or in the golden ones"
