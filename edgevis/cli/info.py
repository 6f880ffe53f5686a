"""Show what a bundle holds, which engine would run here and why, and what was measured of each."""

from __future__ import annotations

import argparse
from dataclasses import replace

from edgevis import BackendError
from edgevis.cli._common import (
    add_engine_arguments,
    add_output_arguments,
    add_rate_argument,
    open_predictor,
    print_json,
)
from runtime.bundle.build_report import measured_text
from runtime.bundle.bundle import Bundle
from runtime.bundle.identity import NOT_COVERED
from runtime.bundle.manifest import EngineRecord, Manifest
from runtime.common.json_data import to_json
from runtime.common.text import size_text, text_table
from runtime.common.vendors import onnxruntime_conflict
from runtime.open_set.text import open_set_lines
from runtime.parity.compare import DISTANCE_HEADERS, PARITY_NOT_MEASURED, decisions_text, distance_cells
from runtime.selection.device_build import with_local_parity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_engine_arguments(parser)
    add_rate_argument(parser)
    parser.add_argument("--enrolment", metavar="FILE", help="what `edgevis enroll` wrote: its open-set threshold, too")
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    bundle = Bundle(arguments.bundle)
    try:
        with open_predictor(arguments) as predictor:
            if arguments.enrolment is not None:
                predictor.load(arguments.enrolment)
            running, reason = predictor.info, ""
    except BackendError as error:
        running, reason = None, str(error)
    # After opening, so that engines built just now are listed.
    engines = tuple(with_local_parity(bundle, record) for record in bundle.manifest.engines)
    manifest = replace(bundle.manifest, engines=engines)
    conflict = onnxruntime_conflict()
    if arguments.json:
        print_json(
            {
                "manifest": to_json(manifest),
                "running": running and running.to_dict(),
                "cannot_run": reason or None,
                "conflict": conflict or None,
            }
        )
        return 0
    trained = "trained" if manifest.weights.trained else "RANDOM WEIGHTS: its results mean nothing"
    rows = [
        ("model", f"{manifest.model} ({manifest.deployment.task}), {manifest.parameters:,} parameters, {trained}"),
        ("weights", manifest.weights.source),
        ("encoder", manifest.encoder_identity[:16]),
        ("digest", manifest.digest or f"none: {NOT_COVERED}"),
        ("built", f"{manifest.created} for {manifest.target} on {manifest.machine}"),
        ("size", size_text(bundle.size_bytes)),
        ("runs here", f"{running.backend} {running.precision}: {running.why}" if running else f"nothing: {reason}"),
        *(("passed over", reason) for reason in (running.skipped if running else ())),
        *([("conflict", conflict)] if conflict else []),
    ]
    print("\n".join(f"{name:<12}{value}" for name, value in rows))
    if running and running.labels and running.open_set:
        print("\n".join([f"{'enrolled':<12}{len(running.labels)} labels", *open_set_lines(running.open_set)]))
    print()
    print(engine_table(manifest))
    if any(record.parity is None and record.graph_parity for record in manifest.engines):
        print(f"\n{PARITY_NOT_MEASURED}")
    if text := measured_text(manifest):
        print(f"\nWhen it was built:\n{text}")
    return 0


def engine_table(manifest: Manifest) -> str:
    """The engines of a bundle with what was measured of them, when it was built or on this machine."""
    headers = ("engine", "device", "ms/image", *DISTANCE_HEADERS, "decisions", "shares enrolments")
    return text_table(headers, [_row(record) for record in manifest.engines])


def _row(record: EngineRecord) -> tuple[str, ...]:
    latency = "–" if record.latency_ms is None else f"{record.latency_ms:.2f}"
    shares = "yes" if record.shares_enrolments else "no"
    measured = record.measured_parity
    graphs = measured.graphs if measured else ()
    agreed = decisions_text(measured.decisions if measured else None)
    name = record.name if record.parity else f"{record.name} (parity not measured yet)"
    return (name, record.device, latency, *distance_cells(graphs), agreed, shares)
