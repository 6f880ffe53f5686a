"""Open the sessions of an engine's graphs; if one fails, all are closed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from runtime import backends
from runtime.backends import Backend, BuildsOnDevice, Engine
from runtime.bundle.bundle import Bundle
from runtime.bundle.engine_files import EngineFiles, read_engine
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Deployment, Graph, Precision
from runtime.common.forking import fork_waits
from runtime.errors import EngineError, UnavailableError
from runtime.sessions.session import Session


def open_sessions(bundle: Bundle, record: EngineRecord, *, threads: int | None) -> dict[str, Session]:
    """Open all graphs of one engine.

    Raises:
        IntegrityError: A file of it is missing or altered.
        MissingDependencyError, UnavailableError, EngineError: It cannot be opened here.
    """
    reader = copy.copy(bundle)
    reader.path = bundle.path.absolute()  # a forked child reads it again, perhaps from another working folder
    return _open(record, bundle.manifest.deployment, reader.engine_files, threads)


def open_graphs(
    record: EngineRecord, deployment: Deployment, locate: Callable[[str], Path], *, threads: int | None
) -> dict[str, Session]:
    """Open all graphs of an engine whose bundle is not written yet.

    Args:
        record: The engine.
        deployment: The model's graphs and batch limit.
        locate: Maps a bundle-relative path to a filesystem path.
        threads: CPU threads for the engine.

    Raises:
        MissingDependencyError, UnavailableError, EngineError: It cannot be opened here.
    """
    return _open(record, deployment, lambda name: read_engine(locate(name)), threads)


def _open(
    record: EngineRecord, deployment: Deployment, read: Callable[[str], EngineFiles], threads: int | None
) -> dict[str, Session]:
    backend = backends.load(record.backend)
    available = backend.devices()
    if record.device not in available:
        if record.device == "cuda" and isinstance(backend, BuildsOnDevice):
            backend.fingerprint(record.device)  # its error says how to mend it
        raise UnavailableError(f"{record.backend} has no device {record.device!r} here; it has {', '.join(available)}")
    sessions: dict[str, Session] = {}
    try:
        for graph in deployment.graphs:
            opened = partial(_open_engine, backend, record, read, graph, threads)
            sessions[graph.name] = Session(
                opened(), graph, max_batch=deployment.max_batch, reopen=partial(_reopen, record, opened)
            )
    except BaseException:
        for session in sessions.values():
            session.close()
        raise
    return sessions


def _open_engine(
    backend: Backend, record: EngineRecord, read: Callable[[str], EngineFiles], graph: Graph, threads: int | None
) -> Engine:
    batched = frozenset(tensor.name for tensor in (*graph.inputs, *graph.outputs) if tensor.batched)
    files = replace(read(record.files[graph.name]), batched=batched)
    with fork_waits():
        precision: Precision = "fp32" if graph.set_of else record.precision
        return backend.open_engine(files, precision=precision, device=record.device, threads=threads)


def _reopen(record: EngineRecord, opened: Callable[[], Engine]) -> Engine:
    """Reopen an engine in a child of the process that opened it."""
    if record.device != "cpu":
        raise EngineError(
            f"{record.name} was opened on {record.device!r} before this process was forked, and CUDA cannot be used by "
            "both: open the Predictor in the child, or start children by the method 'spawn'"
        )
    return opened()
