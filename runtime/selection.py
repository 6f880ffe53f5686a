"""Which engine of a bundle runs: the fastest one that is proved and that this machine can open."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from runtime import backends
from runtime.bundle import Bundle
from runtime.errors import (
    BackendError,
    EngineError,
    MissingDependencyError,
    UnavailableError,
    UnknownBackendError,
)
from runtime.manifest import EngineRecord
from runtime.session import Session
from runtime.spec import Deployment, Precision


@dataclass(frozen=True, slots=True)
class Opened:
    """The engine that runs.

    Attributes:
        record: What the manifest says of it.
        sessions: Graph name to open session.
        why: Why this one, in one sentence.
        skipped: What was better but cannot be used here, with the reason.
    """

    record: EngineRecord
    sessions: Mapping[str, Session]
    why: str
    skipped: tuple[str, ...]


def open_best(bundle: Bundle, *, backend: str, device: str, precision: str | None, threads: int | None) -> Opened:
    """Open the best engine that the arguments allow.

    Without a precision, only engines count whose decisions were measured to be the PyTorch model's: FP32, and others
    where the build says that they share enrolments with it. Among them the one that was fastest when it was built
    wins. An engine that needs a backend, a package or a device that is not here is passed over; one that should open
    and does not is passed over with a warning.

    Raises:
        UnknownBackendError: No engine of the bundle fits the arguments; the message lists those it has.
        MissingDependencyError, UnavailableError, EngineError: The one engine that fits cannot be opened.
    """
    candidates = _candidates(bundle, backend, device, precision)
    skipped: list[str] = []
    last: BackendError | None = None
    for record in candidates:
        try:
            sessions = open_sessions(bundle, record, threads=threads)
        except (MissingDependencyError, UnavailableError, UnknownBackendError) as error:
            skipped.append(f"{record.name}: {error}")
            last = error
        except EngineError as error:
            skipped.append(f"{record.name}: {error}")
            last = error
            warnings.warn(
                f"{bundle.path.name}: the engine {record.name} did not open: {error}", RuntimeWarning, stacklevel=3
            )
        else:
            return Opened(record, sessions, _why(record, candidates, skipped), tuple(skipped))
    if last is None or len(candidates) == 1:
        raise last or UnknownBackendError(f"{bundle.path} holds no engine")
    raise type(last)(f"{bundle.path}: no engine can be opened here:\n  " + "\n  ".join(skipped)) from last


def _candidates(bundle: Bundle, backend: str, device: str, precision: str | None) -> list[EngineRecord]:
    """The engines that the arguments allow, best first."""
    if backend != "auto":
        backends.load(backend)
    if precision is not None and precision not in get_args(Precision):
        raise UnknownBackendError(f"there is no precision {precision!r}; known: {', '.join(get_args(Precision))}")
    engines = bundle.manifest.engines
    fitting = [
        record
        for record in engines
        if backend in ("auto", record.backend)
        and device in ("auto", record.device)
        and precision in (None, record.precision)
    ]
    if not fitting:
        raise UnknownBackendError(
            f"{bundle.path} has no engine for backend={backend!r}, device={device!r}, precision={precision!r}; it has "
            + ", ".join(f"{record.name} on {record.device}" for record in engines)
        )
    if precision is None:
        fitting = [record for record in fitting if _exact(record)] or fitting
    return sorted(fitting, key=lambda record: (_doubt(record), record.latency_ms or math.inf))


def _doubt(record: EngineRecord) -> int:
    """Proved engines come first, those not proved yet next, those whose proof failed last."""
    if record.proof is None:
        return 1
    return 0 if record.proof.passed else 2


def _exact(record: EngineRecord) -> bool:
    return record.precision == "fp32" or record.shares_enrolments


def open_sessions(bundle: Bundle, record: EngineRecord, *, threads: int | None) -> dict[str, Session]:
    """Open all graphs of one engine.

    Raises:
        IntegrityError: A file of it is missing or altered.
        MissingDependencyError, UnavailableError, EngineError: It cannot be opened here.
    """
    return open_graphs(record, bundle.manifest.deployment, bundle.engine_file, threads=threads)


def open_graphs(
    record: EngineRecord, deployment: Deployment, locate: Callable[[str], Path], *, threads: int | None
) -> dict[str, Session]:
    """Open all graphs of one engine whose files may not be in a finished bundle yet.

    Args:
        record: The engine.
        deployment: The model's graphs and batch limit.
        locate: From a file's path inside the bundle to where it lies.
        threads: CPU threads for the engine.

    Raises:
        MissingDependencyError, UnavailableError, EngineError: It cannot be opened here.
    """
    backend = backends.load(record.backend)
    available = backend.devices()
    if record.device not in available:
        raise UnavailableError(f"{record.backend} has no device {record.device!r} here; it has {', '.join(available)}")
    sessions: dict[str, Session] = {}
    try:
        for graph in deployment.graphs:
            engine = backend.open_engine(
                locate(record.files[graph.name]),
                precision=record.precision,
                device=record.device,
                threads=threads,
            )
            sessions[graph.name] = Session(engine, graph, max_batch=deployment.max_batch)
    except BaseException:
        for session in sessions.values():
            session.close()
        raise
    return sessions


def _why(record: EngineRecord, candidates: list[EngineRecord], skipped: list[str]) -> str:
    doubt = ("proved", "not proved yet", "ITS PROOF FAILED: it does not compute what was trained")[_doubt(record)]
    if len(candidates) == 1:
        return f"the only engine that was asked for; {doubt}"
    if record.latency_ms is None:
        return f"the first of {len(candidates)} that opens; {doubt}"
    passed_over = f"; {len(skipped)} better cannot be used here" if skipped else ""
    return f"the fastest of {len(candidates)} by the build's {record.latency_ms:.2f} ms per image; {doubt}{passed_over}"
