"""The time from a fresh interpreter to the first result: ``python -m benchmarks.cold_start --bundle B.edgevis``."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import report
from edgevis import BackendError
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord, Manifest
from runtime.common.text import size_text

# getrusage would also count what the process that started this one held.
_PEAK = """
def peak_kib():
    with open("/proc/self/status") as status:
        return next(line.split()[1] for line in status if line.startswith("VmHWM:"))
"""
_CHILD = """
import time
start = time.perf_counter()
import sys
import edgevis
imported = time.perf_counter()
from runtime.verification.timing import enroll_example, example_image
bundle, backend, precision = sys.argv[1:]
ready = time.perf_counter()
predictor = edgevis.Predictor(bundle, backend=backend, precision=precision)
opened = time.perf_counter()
enroll_example(predictor)
predictor.predict(example_image())
done = time.perf_counter()
print(imported - start, opened - ready, done - opened, peak_kib())
"""
_EAGER_CHILD = """
import time
start = time.perf_counter()
import sys
import torch
from edgevis import models
imported = time.perf_counter()
import json
from runtime.verification.timing import example_image
from runtime.images.preprocess import Preprocessor
declared = models.entry(sys.argv[1])
options = json.loads(sys.argv[2])
ready = time.perf_counter()
module = models.module_from(declared, options)
opened = time.perf_counter()
deployment = models.deployment_of(declared, module)
with torch.inference_mode():
    image = torch.from_numpy(Preprocessor(deployment.preprocess)([example_image()]))
    outputs = ()
    for graph in deployment.image_graphs[:-1]:
        outputs = getattr(module, graph.name)(image, torch.ones(1, *image.shape[2:]))
    getattr(module, deployment.image_graphs[-1].name)(image, *outputs)
done = time.perf_counter()
print(imported - start, opened - ready, done - opened, peak_kib())
"""


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Medians over fresh processes: importing edgevis, opening the bundle, the first result, their sum.

    The first result is that of one image; what has to be enrolled before it is enrolled within that time.
    ``peak_memory_bytes`` is the most that the process held.
    """

    engine: str
    import_s: float
    open_s: float
    first_result_s: float
    total_s: float
    peak_memory_bytes: int
    runs: int


def measure(bundle: Path, record: EngineRecord, *, runs: int) -> ColdStart:
    """Start ``runs`` processes one after the other; BackendError when the engine does not run here."""
    return _started(record.name, _CHILD, (str(bundle), record.backend, record.precision), runs)


def measure_eager(manifest: Manifest, *, runs: int) -> ColdStart:
    """Measure PyTorch in eager mode: importing torch, creating the module with random weights, one image."""
    return _started("PyTorch eager", _EAGER_CHILD, (manifest.model, json.dumps(dict(manifest.options))), runs)


def _started(name: str, code: str, arguments: Sequence[str], runs: int) -> ColdStart:
    command = [sys.executable, "-c", _PEAK + code, *arguments]
    taken = []
    for _ in range(runs):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
        if done.returncode:
            raise BackendError(f"{name} does not run here: {done.stderr.strip().splitlines()[-1]}")
        taken.append([float(part) for part in done.stdout.split()])
    imported, opened, first, peak_kib = (statistics.median(column) for column in zip(*taken, strict=True))
    return ColdStart(name, imported, opened, first, imported + opened + first, int(peak_kib * 1024), runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per engine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle")
    parser.add_argument("--runs", type=int, default=5, help="fresh processes for each engine (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: [
            measure(arguments.bundle, record, runs=arguments.runs)
            for record in Bundle(arguments.bundle).manifest.engines
        ],
        headers=("engine", "import s", "open s", "first result s", "total s", "peak memory"),
        cells=_cells,
        as_json=arguments.json,
    )


def _cells(item: ColdStart) -> tuple[str, ...]:
    seconds = (item.import_s, item.open_s, item.first_result_s, item.total_s)
    return (item.engine, *(f"{value:.2f}" for value in seconds), size_text(item.peak_memory_bytes))


if __name__ == "__main__":
    sys.exit(main())
