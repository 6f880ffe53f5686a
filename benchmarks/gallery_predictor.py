"""A predictor with a large gallery: ``python -m benchmarks.gallery_predictor --bundle B.edgevis``.

Loads an enrolment of made-up rows, one for each label, then enrols new labels – with the judgement of their image – and
asks at once: the first query after a change pays for what follows the change, such as the open-set threshold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gallery import people
from benchmarks.report import report
from edgevis import InputError, Predictor
from runtime.enrolment.file import load_enrolment, save_enrolment
from runtime.gallery.rows import RowsByLabel

HEADERS = (
    "bundle",
    "labels",
    "load s",
    "embed ms",
    "enrol ms",
    "first predict ms",
    "next predict ms",
    "enrol + first ms",
)


@dataclass(frozen=True, slots=True)
class PredictorRow:
    """The medians over the runs.

    Attributes:
        bundle: The bundle's name.
        labels: The number of labels that were enrolled before.
        load_s: Seconds to load them from a file.
        embed_ms: One image through the engine alone.
        enrol_ms: A new label with one image.
        first_ms, next_ms: A prediction right after that, and one more.
        both_ms: Enrolment and the first prediction, less the two embeddings in them.
    """

    bundle: str
    labels: int
    load_s: float
    embed_ms: float
    enrol_ms: float
    first_ms: float
    next_ms: float
    both_ms: float

    def cells(self) -> tuple[str, ...]:
        """The row's cells under :data:`HEADERS`."""
        times = (self.load_s, self.embed_ms, self.enrol_ms, self.first_ms, self.next_ms, self.both_ms)
        return (self.bundle, str(self.labels), *(f"{value:.2f}" for value in times))


def measure(bundle: Path, labels: int, runs: int, threads: int) -> PredictorRow:
    """Fill a predictor's gallery, and change it.

    Raises:
        InputError: The bundle's task has no embeddings.
    """
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (256, 128, 3), dtype=np.uint8) for _ in range(runs)]
    with Predictor(bundle, threads=threads) as predictor, tempfile.TemporaryDirectory() as folder:
        if predictor.info.task not in ("reid", "classify"):
            raise InputError(f"the bundle's task is {predictor.info.task!r}; allowed: reid, classify")
        path = Path(folder) / "saved"
        predictor.enroll("person", images[0])
        predictor.save(path)
        enrolment = load_enrolment(path)
        rows, _ = people(labels, enrolment.rows["person"].shape[1])
        names = [f"person {number}" for number in range(labels)]
        save_enrolment(path, replace(enrolment, rows=RowsByLabel(names, np.ones(labels, np.int64), rows)))
        load_s = _seconds(partial(predictor.load, path))
        times: list[list[float]] = []
        for number, image in enumerate(images):
            calls: list[Callable[[], object]] = [
                partial(predictor.embed, image),
                partial(predictor.enroll, f"new {number}", image),
                partial(predictor.predict, image),
                partial(predictor.predict, image),
            ]
            times.append([_seconds(call) for call in calls])
        embed, enrol, first, further = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        return PredictorRow(bundle.name, labels, load_s, embed, enrol, first, further, enrol + first - 2 * embed)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery_predictor", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="of a model with embeddings")
    parser.add_argument("--labels", type=int, default=100_000, help="enrolled before (default: 100000)")
    parser.add_argument("--runs", type=int, default=15, help="labels that are added (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="of the engine (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if arguments.labels < 1 or arguments.runs < 1:
        parser.error("--labels and --runs are numbers of 1 or more")
    return report(
        lambda: [measure(arguments.bundle, arguments.labels, arguments.runs, arguments.threads)],
        headers=HEADERS,
        cells=PredictorRow.cells,
        as_json=arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
