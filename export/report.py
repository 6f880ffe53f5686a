"""The printed report of ``python -m export.build``, and its list of models and targets."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from export.engine_selection import summary_text
from export.reporter import Reporter
from export.request import UNTRAINED
from runtime.bundle.build_report import measured_text
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord
from runtime.common.json_data import to_json
from runtime.common.text import text_table
from runtime.parity.compare import DISTANCE_HEADERS, PARITY_NOT_MEASURED, decisions_text, distance_cells


def print_report(bundle: Bundle, reporter: Reporter, *, seconds: float, as_json: bool) -> None:
    """Print the built bundle: a line, a table and notes; with ``as_json`` also one object on standard output."""
    size = bundle.size_bytes
    reporter.line("bundle", str(bundle.path), seconds, size)
    if as_json:
        sys.stdout.write(json.dumps(_summary(bundle, seconds, size), indent=2, allow_nan=False) + "\n")
    reporter.write(engines_table(bundle.manifest.engines))
    if any(engine.parity is None for engine in bundle.manifest.engines):
        reporter.write(f"\n{PARITY_NOT_MEASURED}\n")
    if text := measured_text(bundle.manifest):
        reporter.write(f"\n{text}\n")
    if summary := summary_text(bundle.manifest.candidates):
        reporter.write(f"{summary}\n")
    if not bundle.manifest.weights.trained:
        reporter.write(f"\n{UNTRAINED}\n")
    reporter.write(f"\nnext: edgevis info {shlex.quote(str(bundle.path))}\n")


def list_all(*, as_json: bool) -> int:
    """Print the models and the targets; returns the process's exit status."""
    from edgevis import models
    from export import targets

    entries = models.declared_entries()
    shipped = {entry.name: bool(entry.weights) for entry in entries}
    if as_json:
        listed = {
            "models": [
                {
                    "name": entry.name,
                    "task": entry.deployment.task,
                    "parameters": entry.parameters,
                    "weights_shipped": shipped[entry.name],
                    "paper": entry.paper,
                }
                for entry in entries
            ],
            "targets": {name: targets.load(name).summary for name in targets.names()},
        }
        sys.stdout.write(json.dumps(listed, indent=2) + "\n")
        return 0
    rows = [
        (
            entry.name,
            entry.deployment.task,
            f"{entry.parameters:,}",
            "shipped" if shipped[entry.name] else "none",
            entry.paper,
        )
        for entry in entries
    ]
    sys.stdout.write(text_table(("model", "task", "parameters", "weights", "paper"), rows) + "\n\n")
    summaries = [(name, targets.load(name).summary) for name in targets.names()]
    sys.stdout.write(text_table(("target", "for"), summaries) + "\n")
    return 0


def engines_table(engines: Sequence[EngineRecord]) -> str:
    """The engines and their measurements as a text table."""
    rows = []
    for engine in engines:
        measured = engine.measured_parity
        graphs = measured.graphs if measured else ()
        decisions = measured.decisions if measured else None
        rows.append(
            (
                engine.name if engine.parity else f"{engine.name} (parity not measured yet)",
                *distance_cells(graphs),
                decisions_text(decisions),
                "-" if engine.latency_ms is None else f"{engine.latency_ms:.2f}",
                "yes" if engine.shares_enrolments else "no",
            )
        )
    headers = ("engine", *DISTANCE_HEADERS, "decisions", "ms/image", "shares enrolments")
    return f"\n{text_table(headers, rows)}\n"


def _summary(bundle: Bundle, seconds: float, size_bytes: int) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "model": manifest.model,
        "target": manifest.target,
        "seconds": round(seconds, 2),
        "size_bytes": size_bytes,
        "parameters": manifest.parameters,
        "digest": manifest.digest,
        "encoder_identity": manifest.encoder_identity,
        "weights": to_json(manifest.weights),
        "calibration": to_json(manifest.calibration),
        "engines": to_json(manifest.engines),
        "candidates": to_json(manifest.candidates),
        "open_set": to_json(manifest.deployment.postprocess.get("open_set")),
        "machine": manifest.machine,
        "tools": to_json(manifest.tools),
    }
