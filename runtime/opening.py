"""Open the sessions of one engine, all of its graphs or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runtime import backends
from runtime.bundle import Bundle
from runtime.errors import UnavailableError
from runtime.manifest import EngineRecord
from runtime.session import Session
from runtime.spec import Deployment


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
