"""Build an engine on the device: compile its graphs, measure its parity against ``golden.npz``, cache the report.

A bundle for a Jetson or a datacenter GPU holds graphs. TensorRT compiles them into plans on the machine that runs them,
so parity can only be measured there. The report is stored in this machine's cache, because the bundle's files are
hashed. It is valid for these files, this GPU, this driver and this version of the vendor's package.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from runtime import backends, tasks
from runtime.backends import BuildsOnDevice, DeviceBuildResult
from runtime.bundle.bundle import GOLDEN, Bundle
from runtime.bundle.manifest import EngineRecord, ParityReport
from runtime.common.cache_folder import cache_folder
from runtime.common.files import atomic_write
from runtime.common.json_data import from_json, json_digest, parse_json, to_json
from runtime.errors import BackendError, SchemaError, UnavailableError, UnknownBackendError
from runtime.parity.latency import interleaved
from runtime.parity.measure import measure_engine, one_image
from runtime.parity.recorded import deviations, held_to_text, read_recorded
from runtime.sessions.open import open_sessions

_LATENCY_SECONDS = 0.5
_MAX_BYTES = 1 << 20

_log = logging.getLogger("edgevis.device_build")


@dataclass(frozen=True, slots=True)
class LocalParity:
    """The parity and latency of an engine, measured on this machine.

    Attributes:
        engine: The engine's name.
        fingerprint: The versions and the device that the measurement is valid for.
        parity: The measured parity.
        latency_ms: Median time of one image through the graph that predicts.
        shares_enrolments: Whether embeddings may be exchanged with the FP32 model's.
        created: Date and time, ISO 8601, UTC.
    """

    engine: str
    fingerprint: Mapping[str, str]
    parity: ParityReport
    latency_ms: float
    shares_enrolments: bool
    created: str


def needs_device_build(record: EngineRecord) -> bool:
    """Whether this engine must be compiled and measured on the device that runs it."""
    return record.parity is None and record.device != "cpu" and _device_builder(record) is not None


def can_build_here(record: EngineRecord) -> bool:
    """Whether :func:`needs_device_build` is true and this machine has the package and the device."""
    try:
        return needs_device_build(record) and bool(_fingerprint(record))
    except BackendError:
        return False


def with_local_parity(bundle: Bundle, record: EngineRecord) -> EngineRecord:
    """The record with this machine's measurement; unchanged where there is none."""
    if not needs_device_build(record):
        return record
    try:
        known = _read(bundle, record, _fingerprint(record))
    except BackendError:  # not here: it cannot be opened either, and opening it says why
        return record
    return record if known is None else _with(record, known)


def build_on_device(
    bundle: Bundle,
    record: EngineRecord,
    *,
    report: Callable[[str, DeviceBuildResult], None] = lambda graph, result: None,
) -> EngineRecord:
    """Compile an engine's graphs, measure its parity and latency, and cache the measurement.

    Args:
        bundle: The bundle.
        record: One of its engines.
        report: Called with each graph's name and the result of its build.

    Returns:
        The record with its parity, which may say that the engine is beyond its tolerance.

    Raises:
        IntegrityError: A file of the bundle is missing or altered.
        MissingDependencyError, UnavailableError: This machine lacks a package or a device; the message names it.
        EngineError: The vendor refused a graph, or failed.
    """
    backend = _device_builder(record)
    if backend is None:
        raise UnavailableError(
            f"the engines of {record.backend} are complete when the bundle is built; they need no build on the device"
        )
    fingerprint = _fingerprint(record)
    for graph in bundle.manifest.deployment.graphs:
        report(graph.name, backend.build_on_device(bundle.engine_files(record.files[graph.name])))
    golden = bundle.golden()
    with ExitStack() as stack:
        sessions = open_sessions(bundle, record, threads=None)
        for session in sessions.values():
            stack.callback(session.close)
        measured = measure_engine(
            sessions,
            record.precision,
            golden,
            agreement=tasks.load(bundle.manifest.deployment.task).agreement,
            machine=fingerprint.get("gpu", record.device),
        )
        known = read_recorded(bundle, record)
        differences = () if known is None else deviations(record, sessions, golden, known)
        latency = interleaved(
            {record.name: one_image(sessions, bundle.manifest.deployment, golden)}, seconds=_LATENCY_SECONDS
        )
    # What the graph gave when the bundle was built binds the engine that is made of it.
    parity = replace(
        measured.parity,
        passed=all(deviation.holds for deviation in differences) if differences else measured.parity.passed,
        tolerance=held_to_text(record),
    )
    measurement = LocalParity(
        engine=record.name,
        fingerprint=fingerprint,
        parity=parity,
        latency_ms=round(latency[record.name].p50_ms, 3),
        # The build measured the graph's decisions on more images than a bundle carries, where it could run the graph.
        shares_enrolments=parity.passed and (measured.shares_enrolments or record.shares_enrolments),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    _write(bundle, record, measurement)
    return _with(record, measurement)


def _device_builder(record: EngineRecord) -> BuildsOnDevice | None:
    try:
        module = backends.load(record.backend)
    except UnknownBackendError:  # opening the engine says so
        return None
    return module if isinstance(module, BuildsOnDevice) else None


def _fingerprint(record: EngineRecord) -> dict[str, str]:
    backend = _device_builder(record)
    return {} if backend is None else dict(backend.fingerprint(record.device))


def _with(record: EngineRecord, measurement: LocalParity) -> EngineRecord:
    return replace(
        record,
        parity=measurement.parity,
        latency_ms=measurement.latency_ms,
        shares_enrolments=measurement.shares_enrolments,
    )


def _path(bundle: Bundle, record: EngineRecord, fingerprint: Mapping[str, str]) -> Path:
    """The cache file of the measurement of these files on this machine."""
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
    return cache_folder() / "parity" / f"{json_digest(parts)}.json"


def _read(bundle: Bundle, record: EngineRecord, fingerprint: Mapping[str, str]) -> LocalParity | None:
    path = _path(bundle, record, fingerprint)
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        measurement = from_json(LocalParity, parse_json(path.read_bytes()), path.name)
    except (OSError, SchemaError):  # none, or one that cannot be read: it is measured again
        return None
    # A version of edgevis with another tolerance measures again.
    return measurement if measurement.parity.tolerance == held_to_text(record) else None


def _write(bundle: Bundle, record: EngineRecord, measurement: LocalParity) -> None:
    try:
        path = _path(bundle, record, measurement.fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(to_json(measurement), indent=2, allow_nan=False).encode())
    # A full disk; NaN, which JSON does not have; a user without a home folder.
    except (OSError, ValueError, UnavailableError) as error:
        _log.warning("the parity of %s cannot be cached and will be measured again: %s", record.name, error)
