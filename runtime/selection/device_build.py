"""Finish an engine on the device: make what it opens, prove it there against ``golden.npz``, remember the proof.

A bundle for a Jetson or a datacenter GPU holds graphs; plans are made where they run, and only there can they be
proved. The proof lies in this machine's cache, not in the bundle, whose files are hashed. It counts for these very
files, this GPU, this driver and this version of the vendor's package; when any of them changes, there is none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from runtime import backends
from runtime.backends import Finished, FinishedOnDevice
from runtime.bundle.bundle import GOLDEN, Bundle
from runtime.bundle.manifest import EngineRecord, Proof
from runtime.common.cache_folder import cache_folder
from runtime.common.files import atomic_write
from runtime.common.json_data import from_json, parse_json, to_json
from runtime.errors import BackendError, SchemaError, UnavailableError
from runtime.parity.latency import interleaved
from runtime.parity.measure import measure_engine, one_image
from runtime.parity.recorded import deviations, held_to_text, read_recorded
from runtime.sessions.open import open_sessions

_LATENCY_SECONDS = 0.5
_MAX_BYTES = 1 << 20

_log = logging.getLogger("edgevis.device_build")


@dataclass(frozen=True, slots=True)
class LocalProof:
    """What was measured of an engine on this machine.

    Attributes:
        engine: Its name.
        fingerprint: The versions and the device it counts for.
        proof: The measured parity.
        latency_ms: Median time of one image through the graph that predicts.
        shares_enrolments: Whether embeddings may be exchanged with the FP32 model's.
        created: Date and time, ISO 8601, UTC.
    """

    engine: str
    fingerprint: Mapping[str, str]
    proof: Proof
    latency_ms: float
    shares_enrolments: bool
    created: str


def unfinished(record: EngineRecord) -> bool:
    """Whether the build left this engine to be finished and proved where it runs."""
    return record.proof is None and record.device != "cpu" and _finisher(record) is not None


def can_finish(record: EngineRecord) -> bool:
    """Whether it is such an engine and this machine has what it needs."""
    try:
        return unfinished(record) and bool(_fingerprint(record))
    except BackendError:
        return False


def with_local_proof(bundle: Bundle, record: EngineRecord) -> EngineRecord:
    """The record with what was measured of it on this machine; unchanged where nothing was."""
    if not unfinished(record):
        return record
    try:
        known = _read(bundle, record, _fingerprint(record))
    except BackendError:  # not here: it cannot be opened either, and opening it says why
        return record
    return record if known is None else _with(record, known)


def finish_engine(
    bundle: Bundle, record: EngineRecord, *, report: Callable[[str, Finished], None] = lambda graph, made: None
) -> EngineRecord:
    """Make what an unfinished engine opens, prove it, and remember that.

    Args:
        bundle: The bundle.
        record: One of its engines.
        report: Told of each graph when it is ready.

    Returns:
        The record with its proof, which may say that the engine is beyond its tolerance.

    Raises:
        IntegrityError: A file of the bundle is missing or altered.
        MissingDependencyError, UnavailableError: Not on this machine; the message says what is missing.
        EngineError: The vendor refused a graph, or failed.
    """
    backend = _finisher(record)
    if backend is None:
        raise UnavailableError(f"the engines of {record.backend} are finished when they are built")
    fingerprint = _fingerprint(record)
    for graph in bundle.manifest.deployment.graphs:
        report(graph.name, backend.finish(bundle.engine_files(record.files[graph.name])))
    golden = bundle.golden()
    with ExitStack() as stack:
        sessions = open_sessions(bundle, record, threads=None)
        for session in sessions.values():
            stack.callback(session.close)
        measured = measure_engine(sessions, record.precision, golden, machine=fingerprint.get("gpu", record.device))
        known = read_recorded(bundle, record)
        apart = () if known is None else deviations(record, sessions, golden, known)
        latency = interleaved(
            {record.name: one_image(sessions, bundle.manifest.deployment, golden)}, seconds=_LATENCY_SECONDS
        )
    # What the graph gave when the bundle was built binds the engine that is made of it.
    proof = replace(
        measured.proof,
        passed=all(deviation.holds for deviation in apart) if apart else measured.proof.passed,
        tolerance=held_to_text(record),
    )
    found = LocalProof(
        engine=record.name,
        fingerprint=fingerprint,
        proof=proof,
        latency_ms=round(latency[record.name].p50_ms, 3),
        # The build measured the graph's decisions on more images than a bundle carries, where it could run the graph.
        shares_enrolments=proof.passed and (measured.shares_enrolments or record.shares_enrolments),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    _write(bundle, record, found)
    return _with(record, found)


def _finisher(record: EngineRecord) -> FinishedOnDevice | None:
    if record.backend not in backends.names():  # of a newer version: opening it says so
        return None
    module = backends.load(record.backend)
    return module if isinstance(module, FinishedOnDevice) else None


def _fingerprint(record: EngineRecord) -> dict[str, str]:
    backend = _finisher(record)
    return {} if backend is None else dict(backend.fingerprint(record.device))


def _with(record: EngineRecord, found: LocalProof) -> EngineRecord:
    return replace(record, proof=found.proof, latency_ms=found.latency_ms, shares_enrolments=found.shares_enrolments)


def _path(bundle: Bundle, record: EngineRecord, fingerprint: Mapping[str, str]) -> Path:
    """Where the proof of these very files on this machine lies."""
    files = bundle.manifest.files
    stems = {Path(file).with_suffix("").as_posix() for file in record.files.values()}
    # With companions, such as the specification beside a graph.
    used = {name: file.sha256 for name, file in files.items() if Path(name).with_suffix("").as_posix() in stems}
    parts = {
        "engine": [record.name, record.device],
        "files": used,
        "golden": files[GOLDEN].sha256 if GOLDEN in files else "",
        "fingerprint": dict(fingerprint),
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "proofs" / f"{digest}.json"


def _read(bundle: Bundle, record: EngineRecord, fingerprint: Mapping[str, str]) -> LocalProof | None:
    path = _path(bundle, record, fingerprint)
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        found = from_json(LocalProof, parse_json(path.read_bytes()), path.name)
    except (OSError, SchemaError):  # none, or one that cannot be read: it is measured again
        return None
    # A version of edgevis with another tolerance measures again.
    return found if found.proof.tolerance == held_to_text(record) else None


def _write(bundle: Bundle, record: EngineRecord, found: LocalProof) -> None:
    try:
        path = _path(bundle, record, found.fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(to_json(found), indent=2, allow_nan=False).encode())
    # A full disk; NaN, which JSON does not have; a user without a home folder.
    except (OSError, ValueError, UnavailableError) as error:
        _log.warning("the cache cannot keep the proof of %s, so that it is measured again: %s", record.name, error)
