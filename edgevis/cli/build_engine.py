"""Build a bundle's engines on the device that runs them, measure their parity, and cache both.

Plans and parity reports are stored in the cache ($EDGEVIS_CACHE, or ~/.cache/edgevis), not in the bundle. They are
valid until the driver, the GPU, TensorRT or the bundle changes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from edgevis import BackendError, MissingDependencyError, UnavailableError
from edgevis.cli._common import add_output_arguments, print_json, print_next
from runtime.backends import DeviceBuildResult
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord
from runtime.common.json_data import to_json
from runtime.common.text import size_text, text_table
from runtime.parity.compare import DISTANCE_HEADERS, decisions_text, distance_cells
from runtime.selection.device_build import build_on_device, can_build_here, needs_device_build


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder NAME.edgevis")
    add_output_arguments(parser, progress=True)


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """The outcome for one engine: ``passed``, ``failed``, or ``not here`` where the machine lacks what it needs."""

    engine: str
    status: str
    record: EngineRecord
    reason: str = ""


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle(arguments.bundle)
    records = [record for record in bundle.manifest.engines if needs_device_build(record)]
    if not records:
        return _nothing_to_do(bundle, as_json=arguments.json)
    say = _silent if arguments.json or arguments.quiet else _say
    outcomes = [_build(bundle, record, say) for record in records]
    if all(outcome.status == "not here" for outcome in outcomes):
        raise UnavailableError(
            "no engine of this bundle can be built on this machine:\n  "
            + "\n  ".join(f"{outcome.engine}: {outcome.reason}" for outcome in outcomes)
        )
    passed = all(outcome.status != "failed" for outcome in outcomes)
    if arguments.json:
        print_json({"bundle": str(bundle.path), "passed": passed, "engines": [_data(outcome) for outcome in outcomes]})
    else:
        headers = ("engine", "status", "ms/image", *DISTANCE_HEADERS, "decisions", "shares enrolments")
        print(text_table(headers, [_row(outcome) for outcome in outcomes]))
        for outcome in outcomes:
            if outcome.reason:
                print(f"{outcome.engine} {outcome.status}: {outcome.reason}")
        print_next("edgevis", "info", bundle.path)
    return 0 if passed else 1


def _build(bundle: Bundle, record: EngineRecord, say: Callable[[str], None]) -> BuildOutcome:
    def report(graph: str, result: DeviceBuildResult) -> None:
        how = f"built in {result.seconds:.0f} s" if result.built else "ready before"
        why = f", again: {result.reason}" if result.reason else ""
        say(f"{record.name} {graph}: {how}, {size_text(result.size_bytes)}{why}")

    if can_build_here(record):
        say(f"{record.name}: building what is not in the cache; a graph can take minutes")
    try:
        done = build_on_device(bundle, record, report=report)
    except (MissingDependencyError, UnavailableError) as error:
        return BuildOutcome(record.name, "not here", record, str(error))
    except BackendError as error:
        return BuildOutcome(record.name, "failed", record, str(error))
    if done.holds_parity:
        return BuildOutcome(record.name, "passed", done)
    tolerance = done.parity.tolerance if done.parity else ""
    return BuildOutcome(record.name, "failed", done, f"beyond its tolerance: {tolerance}; it is not chosen unasked")


def _nothing_to_do(bundle: Bundle, *, as_json: bool) -> int:
    if as_json:
        print_json({"bundle": str(bundle.path), "passed": True, "engines": []})
    else:
        print(f"{bundle.path}: every engine was complete when the bundle was built; there is nothing to do")
    return 0


def _row(outcome: BuildOutcome) -> tuple[str, ...]:
    record = outcome.record
    latency = "–" if record.latency_ms is None else f"{record.latency_ms:.2f}"
    graphs = record.parity.graphs if record.parity else ()
    decisions = decisions_text(record.parity.decisions if record.parity else None)
    shares = "yes" if record.shares_enrolments else "no"
    return (outcome.engine, outcome.status, latency, *distance_cells(graphs), decisions, shares)


def _data(outcome: BuildOutcome) -> dict[str, object]:
    record = outcome.record
    return {
        "engine": outcome.engine,
        "status": outcome.status,
        "reason": outcome.reason,
        "latency_ms": record.latency_ms,
        "shares_enrolments": record.shares_enrolments,
        "parity": to_json(record.parity),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """Ignores progress: only the JSON object is printed."""
