"""The measurements of a build's engines, and the choice of those to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calibration.search.accuracy_drop import accuracy_drop
from runtime.bundle.manifest import Candidate, EngineRecord, Int8Search, ParityReport
from runtime.bundle.spec import Deployment
from runtime.errors import MissingDependencyError, UnavailableError
from runtime.sessions.open import open_graphs

PASSES, FASTEST, FIRST = "passes", "fastest that passes", "first that passes; not timed here"
UNMEASURABLE = "not measurable on these images"


def unopenable(records: Sequence[EngineRecord], deployment: Deployment, folder: Path) -> dict[str, str]:
    """The names of the engines that this machine cannot open, and the reasons."""
    reasons = {}
    for record in records:
        try:
            sessions = open_graphs(record, deployment, lambda file: folder / file, threads=None)
        except (MissingDependencyError, UnavailableError) as error:
            reasons[record.name] = str(error)
            continue
        for session in sessions.values():
            session.close()
    return reasons


def candidates_of(
    compiled: Sequence[EngineRecord],
    proved: Sequence[EngineRecord],
    *,
    unopened: Mapping[str, str],
    max_drop: float,
    choose: bool,
    left_out: Sequence[str] = (),
) -> tuple[Candidate, ...]:
    """Every engine with its latency, its drop and the verdict on it; the fastest first.

    Args:
        compiled: All engines that were compiled.
        proved: Those that hold the tolerance of their precision.
        unopened: The names of the engines that cannot be opened here, with the reason.
        max_drop: What an engine may lose; FP32 loses nothing by definition.
        choose: Whether only the fastest that passes is kept, and the fastest FP32 engine to fall back to. Otherwise
            all that hold their tolerance are.
        left_out: Names of engines that were not made, because nothing could have been measured of them.
    """
    measured = {record.name: record for record in proved}
    candidates = [Candidate(name, None, None, UNMEASURABLE, False) for name in left_out]
    for record in compiled:
        if record.name in unopened:
            candidates.append(Candidate(record.name, None, None, f"cannot run here: {unopened[record.name]}", False))
        elif record.name not in measured:
            candidates.append(
                Candidate(record.name, None, None, "beyond its tolerance, or not what its graph says", False)
            )
        else:
            proof = measured[record.name].measured_parity
            drop = None if proof is None else round(drop_of_parity(proof), 6)
            measurable = proof is None or proof.decisions is None or proof.decisions.measurable
            if record.precision == "fp32":
                verdict = PASSES
            elif not measurable:
                verdict = UNMEASURABLE
            else:
                verdict = PASSES if drop is not None and drop <= max_drop else f"loses more than {max_drop:g}"
            candidates.append(Candidate(record.name, measured[record.name].latency_ms, drop, verdict, not choose))
    candidates.sort(key=_latency)
    fastest = next((item for item in candidates if item.verdict == PASSES), None)
    precision = {record.name: record.precision for record in compiled}
    fallback = next((item for item in candidates if item.verdict == PASSES and precision[item.engine] == "fp32"), None)
    return tuple(
        replace(
            item,
            verdict=item.verdict if item is not fastest else FIRST if item.latency_ms is None else FASTEST,
            in_bundle=item.in_bundle or item is fastest or item is fallback,
        )
        for item in candidates
    )


def drop_of_parity(report: ParityReport) -> float:
    """The drop of an engine, see :func:`calibration.search.accuracy_drop.accuracy_drop`."""
    return accuracy_drop(min(parity.mean_cosine for parity in report.graphs), report.decisions)


def summary_text(candidates: Sequence[Candidate]) -> str:
    """One sentence about INT8 if it was built and is not the best engine; else empty."""
    int8_graphs = [item for item in candidates if item.engine.endswith("-int8")]
    best = next((item for item in candidates if item.verdict in (FASTEST, FIRST)), None)
    if not int8_graphs or best in int8_graphs:
        return ""
    instead = "" if best is None else f"; {_named(best)}"
    if all(item.verdict == UNMEASURABLE for item in int8_graphs):
        return f"INT8 could not be measured on these images, and does not count as passed{instead}"
    if not any(item.verdict == PASSES for item in int8_graphs):
        return f"no INT8 engine passes{instead}"
    return (
        f"INT8 passes, and is not the {'first' if best is None or best.latency_ms is None else 'fastest here'}{instead}"
    )


def _named(best: Candidate) -> str:
    """The best engine as text, with its latency if it was timed here."""
    if best.latency_ms is None:
        return f"the first that passes is {best.engine}, not timed here"
    return f"the fastest that passes is {best.engine}, {best.latency_ms:.2f} ms"


def no_int8_text(search: Int8Search) -> str:
    """The note that a search found no INT8 graph within bounds."""
    return (
        f"{search.backend}: no INT8 graph loses at most {search.max_drop:g}; with {len(search.float_layers)} of "
        f"{search.layers} layers in float it loses {search.drop:.4f}. Calibrate on images like those it will see, or "
        "allow more with --max-drop"
    )


def _latency(item: Candidate) -> float:
    return math.inf if item.latency_ms is None else item.latency_ms
