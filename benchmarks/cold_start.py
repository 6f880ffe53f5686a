"""From a fresh interpreter to the first result: ``python -m benchmarks.cold_start --bundle B.edgevis``."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import report
from edgevis import BackendError
from runtime.bundle import Bundle
from runtime.manifest import EngineRecord

_CHILD = """
import time
start = time.perf_counter()
import sys
import edgevis
imported = time.perf_counter()
import numpy as np
bundle, backend, precision = sys.argv[1:]
predictor = edgevis.Predictor(bundle, backend=backend, precision=precision)
opened = time.perf_counter()
predictor.embed(np.zeros((480, 240, 3), np.uint8))
print(imported - start, opened - imported, time.perf_counter() - opened)
"""


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Medians over fresh processes, in seconds: importing edgevis, opening the bundle, the first result, their sum."""

    engine: str
    import_s: float
    open_s: float
    first_result_s: float
    total_s: float
    runs: int


def measure(bundle: Path, record: EngineRecord, *, runs: int) -> ColdStart:
    """Start ``runs`` processes one after the other; BackendError when the engine does not run here."""
    command = [sys.executable, "-c", _CHILD, str(bundle), record.backend, record.precision]
    taken = []
    for _ in range(runs):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
        if done.returncode:
            raise BackendError(f"{record.name} does not run here: {done.stderr.strip().splitlines()[-1]}")
        taken.append([float(part) for part in done.stdout.split()])
    imported, opened, first = (statistics.median(column) for column in zip(*taken, strict=True))
    return ColdStart(record.name, imported, opened, first, imported + opened + first, runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per engine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle whose task makes embeddings")
    parser.add_argument("--runs", type=int, default=5, help="fresh processes for each engine (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: [
            measure(arguments.bundle, record, runs=arguments.runs)
            for record in Bundle(arguments.bundle).manifest.engines
        ],
        headers=("engine", "import s", "open s", "first result s", "total s"),
        cells=_cells,
        as_json=arguments.json,
    )


def _cells(item: ColdStart) -> tuple[str, ...]:
    return (item.engine, *(f"{value:.2f}" for value in (item.import_s, item.open_s, item.first_result_s, item.total_s)))


if __name__ == "__main__":
    sys.exit(main())
