"""Select the engine to run: the fastest one with passed parity that opens on this machine."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from runtime import backends
from runtime.bundle.bundle import GOLDEN, Bundle
from runtime.bundle.manifest import EngineRecord
from runtime.bundle.spec import Precision
from runtime.common.discovery import module_name
from runtime.errors import (
    BackendError,
    EngineError,
    MissingDependencyError,
    UnavailableError,
    UnknownBackendError,
)
from runtime.parity.recorded import deviation_text, deviations, read_recorded
from runtime.selection.device_build import build_on_device, can_build_here, needs_device_build, with_local_parity
from runtime.sessions.open import open_sessions
from runtime.sessions.session import Session

_log = logging.getLogger("edgevis.selection")

# Up to here reading the golden inputs takes a few milliseconds, beside the hundreds that opening an engine takes.
_CHEAP_BYTES = 16 << 20
_ONE_ROW = 2.0


@dataclass(frozen=True, slots=True)
class SelectedEngine:
    """The selected, open engine.

    Attributes:
        record: Its record, with this machine's parity where the manifest has none.
        sessions: Graph name to open session.
        why: The reason for this engine, in one sentence.
        skipped: The better engines that cannot be used here, with the reasons.
    """

    record: EngineRecord
    sessions: Mapping[str, Session]
    why: str
    skipped: tuple[str, ...]


def open_best(
    bundle: Bundle, *, backend: str, device: str, precision: str | None, threads: int | None
) -> SelectedEngine:
    """Open the best engine that the arguments allow.

    Without a precision, only engines count whose decisions were measured to be the PyTorch model's: FP32, and others
    where the build says that they share enrolments with it. Among them the one that was fastest when it was built
    wins. What was measured on this machine of an engine that only runs here counts as if the build had measured it;
    if it has not been, it is when the engine is the next best one. An engine that needs a backend, a package or a
    device that is not here is passed over; one that should open and does not is passed over with a warning, and so is
    one that does not give what it gave when it was built, see :mod:`runtime.parity.recorded`. Where no other fits the
    arguments, that one is opened, with a warning.

    Raises:
        UnknownBackendError: No engine of the bundle fits the arguments; the message lists those it has.
        MissingDependencyError, UnavailableError, EngineError: The one engine that fits cannot be opened.
    """
    candidates = _candidates(bundle, backend, device, precision)
    skipped: list[str] = []
    last: BackendError | None = None
    for record in candidates:
        try:
            if needs_device_build(record):
                record = build_on_device(bundle, record)
                if not record.holds_parity and len(candidates) > 1:
                    raise EngineError("it does not compute what was trained; `edgevis verify` shows how far it is off")
            sessions = open_sessions(bundle, record, threads=threads)
            doubt = _unlike_recorded(bundle, record, sessions)
            if doubt and len(candidates) > 1:
                _close(sessions)
                raise EngineError(doubt)
        except (MissingDependencyError, UnavailableError, UnknownBackendError) as error:
            skipped.append(f"{record.name}: {error}")
            last = error
        except EngineError as error:
            skipped.append(f"{record.name}: {error}")
            last = error
            _log.warning("%s: the engine %s did not open: %s", bundle.path.name, record.name, error)
        else:
            if doubt:
                _log.warning("%s: the engine %s: %s", bundle.path.name, record.name, doubt)
            measured_here = record not in bundle.manifest.engines
            why = _why(record, candidates, skipped, measured_here=measured_here) + _waiting(bundle, record)
            return SelectedEngine(record, sessions, why, tuple(skipped))
    if last is None or len(candidates) == 1:
        raise last or UnknownBackendError(f"{bundle.path} holds no engine")
    raise type(last)(f"{bundle.path}: no engine can be opened here:\n  " + "\n  ".join(skipped)) from last


def _unlike_recorded(bundle: Bundle, record: EngineRecord, sessions: Mapping[str, Session]) -> str:
    """The reason why an engine deviates from its record on one image; empty if it agrees or the check is costly.

    Old processors show why this is needed: without VNNI, OpenVINO's INT8 kernels cut sums off at 16 bits, and OSNet
    x0.25's embeddings, recorded with it, had a mean cosine of 0.84 (2026.4).
    """
    golden = bundle.manifest.files.get(GOLDEN)
    if record.recorded is None or golden is None or golden.size_bytes > _CHEAP_BYTES:
        return ""
    try:
        recorded = read_recorded(bundle, record)
        assert recorded is not None  # noqa: S101 - the record says that there is one
        measured = deviations(record, sessions, bundle.golden(), recorded, batch_sizes=(1,), rows=1)
    except BaseException:
        _close(sessions)
        raise
    # One row lies further from the mean than the mean of all does.
    wrong = [item for item in measured if not item.difference <= _ONE_ROW * item.allowed]
    if not wrong:
        return ""
    return (
        f"it does not give here what it gave when it was built: {deviation_text(wrong[0])}; `edgevis verify` shows "
        "more: open the bundle with another backend= or precision="
    )


def _close(sessions: Mapping[str, Session]) -> None:
    for session in sessions.values():
        session.close()


def _candidates(bundle: Bundle, backend: str, device: str, precision: str | None) -> list[EngineRecord]:
    """The engines that the arguments allow, best first."""
    if backend != "auto":
        backends.load(backend)
    if precision is not None and precision not in get_args(Precision):
        raise UnknownBackendError(f"there is no precision {precision!r}; known: {', '.join(get_args(Precision))}")
    engines = [with_local_parity(bundle, record) for record in bundle.manifest.engines]
    fitting = [
        record
        for record in engines
        if (backend == "auto" or module_name(backend) == module_name(record.backend))
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
    return sorted(fitting, key=lambda record: (_parity_rank(record), record.latency_ms or math.inf))


def _parity_rank(record: EngineRecord) -> int:
    """0: parity held; 1: not measured yet; 2: parity failed. Lower ranks are preferred."""
    if record.parity is None:
        return 1
    return 0 if record.parity.passed else 2


def _exact(record: EngineRecord) -> bool:
    return record.precision == "fp32" or record.shares_enrolments


def _waiting(bundle: Bundle, chosen: EngineRecord) -> str:
    """A note that names the engines that `edgevis build-engine` can build here; a predictor builds none itself."""
    names = [
        record.name
        for record in bundle.manifest.engines
        if record.name != chosen.name and can_build_here(record) and not with_local_parity(bundle, record).parity
    ]
    return f"; `edgevis build-engine` has not built {', '.join(names)} here" if names else ""


def _why(record: EngineRecord, candidates: list[EngineRecord], skipped: list[str], *, measured_here: bool) -> str:
    parity = ("parity held", "parity not measured yet", "PARITY FAILED: it does not compute what was trained")[
        _parity_rank(record)
    ]
    if len(candidates) == 1:
        return f"the only engine that was asked for; {parity}"
    if record.latency_ms is None:
        return f"the first of {len(candidates)} that opens; {parity}"
    passed_over = f"; {len(skipped)} better cannot be used here" if skipped else ""
    whose = "this machine's" if measured_here else "the build's"
    return f"the fastest of {len(candidates)} by {whose} {record.latency_ms:.2f} ms per image; {parity}{passed_over}"
