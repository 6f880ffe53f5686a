"""Planted faults: whether a build or ``edgevis verify`` catches each, and its cost in accuracy.

    python -m benchmarks.faults                       about 300 faults, an hour on one core
    python -m benchmarks.faults --data pku_reid_dev.zip      harm to OSNet x0.25 in rank-1 and mAP on persons
    python -m benchmarks.faults --clean 200           no fault: false alarms over thread counts and batch sizes

A fault is planted into the graph that an engine is compiled from, after everything was measured, as a wrong compiler
would: one scale times 4 or 1/4, one layer's weights doubled, shuffled or zeroed, one bias negated. The engine is
compiled by the build's own compiler and given to the build's gate; then it takes the right engine's place in a finished
bundle, hashes renewed, and ``edgevis verify`` runs. Harm is what the task's measure loses beside the right engine, in
points of 100, on images that no gate sees. A fault that harms by more than a point and is missed by either ends this
with status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fault_kinds import Fault, faults_of, planted, spread
from benchmarks.fault_subjects import SUBJECTS, Subject, subject_of
from edgevis import EdgevisError
from runtime.bundle.manifest import EngineRecord
from runtime.common.json_data import to_json
from runtime.common.text import text_table

HARMFUL = 1.0
"""Points of the task's measure."""


@dataclass(frozen=True, slots=True)
class FaultRow:
    """The outcome of one planted fault.

    Attributes:
        model, engine: What it was planted into.
        fault: What was done, and where.
        build: How the build's gate answered: empty where it let the engine pass.
        verify: The same of ``edgevis verify``.
        harm: What the task's measure loses, in points.
        measure: The task's measure.
    """

    model: str
    engine: str
    fault: Fault
    build: str
    verify: str
    harm: float
    measure: str

    @property
    def verdict(self) -> str:
        """``caught`` by both, ``harmless`` if uncaught without effect, else ``missed`` by a named check."""
        missed = [name for name, answer in (("build", self.build), ("verify", self.verify)) if not answer]
        if not missed:
            return "caught"
        return f"missed by {' and '.join(missed)}" if self.harm > HARMFUL else "harmless"


@dataclass(frozen=True, slots=True)
class Alarm:
    """The outcome of one run of a right engine.

    Attributes:
        threads: CPU threads of the engine.
        batch_sizes: What ``verify`` ran at.
        build, verify: As in :class:`FaultRow`; anything but empty is a false alarm.
    """

    model: str
    engine: str
    threads: int
    batch_sizes: tuple[int, ...]
    build: str
    verify: str


def plant(subjects: Sequence[str], count: int, data: Path | None, folder: Path) -> Iterator[FaultRow]:
    """Plant about ``count`` faults, equally many into each engine of each subject, and judge each."""
    engines = sum(len(SUBJECTS[name].engines) for name in subjects)
    each = -(-count // engines)
    for name in subjects:
        subject = subject_of(name, folder / name, data=data)
        for record in subject.records:
            kinds: dict[str, list[Fault]] = {}
            for graph, model in subject.graphs(record).items():
                for kind, places in faults_of(graph, model).items():
                    kinds.setdefault(kind, []).extend(places)
            right = subject.score(record, subject.folder)
            for number, fault in enumerate(spread(kinds, each)):
                yield _judged(subject, record, fault, right, number)


def _judged(subject: Subject, record: EngineRecord, fault: Fault, right: tuple[float, ...], number: int) -> FaultRow:
    graphs = dict(subject.graphs(record))
    graphs[fault.graph] = planted(graphs[fault.graph], fault, seed=number)
    with tempfile.TemporaryDirectory(dir=subject.folder.parent) as name:
        work = Path(name, "faulty.edgevis")
        try:
            wrong = subject.compiled(record, graphs, work)
        except EdgevisError as error:  # a compiler that refuses the graph has caught it
            return FaultRow(subject.name, record.name, fault, _short(error), _short(error), 0.0, subject.measure)
        build = subject.build(wrong, work)
        verify = subject.verify(wrong, work)
        try:
            score = subject.score(wrong, work)
            harm = 100 * max(before - after for before, after in zip(right, score, strict=True))
        except EdgevisError:  # NaN: the runtime refuses it
            harm = 100.0
    return FaultRow(subject.name, record.name, fault, build, verify, round(harm, 2), subject.measure)


def alarms(subjects: Sequence[str], count: int, folder: Path) -> Iterator[Alarm]:
    """Build and verify right engines ``count`` times."""
    prepared = [subject_of(name, folder / name, data=None) for name in subjects]
    engines = [(subject, record) for subject in prepared for record in subject.records]
    random = np.random.default_rng(0)
    for number in range(count):
        subject, record = engines[number % len(engines)]
        threads = (1, 2, 3, 4, 8)[int(random.integers(5))]
        sizes = tuple(sorted({int(size) for size in random.integers(1, 33, 3)}))
        build = subject.build(record, subject.folder, threads=threads)
        verify = subject.verify(record, subject.folder, threads=threads, batch_sizes=sizes)
        yield Alarm(subject.name, record.name, threads, sizes, build, verify)


def summary(rows: Sequence[FaultRow]) -> list[tuple[str, ...]]:
    """For each engine: faults, harmful ones, and how many of these the build and ``verify`` caught."""
    table = []
    for key in dict.fromkeys((row.model, row.engine) for row in rows):
        engine_rows = [row for row in rows if (row.model, row.engine) == key]
        table.append((*key, *_counts(engine_rows)))
    return [*table, ("all", "", *_counts(rows))]


def _counts(rows: Sequence[FaultRow]) -> tuple[str, ...]:
    harmful = [row for row in rows if row.harm > HARMFUL]
    harmless = [row for row in rows if row.harm <= HARMFUL]
    return (
        str(len(rows)),
        str(len(harmful)),
        str(sum(bool(row.build) for row in harmful)),
        str(sum(bool(row.verify) for row in harmful)),
        f"{sum(row.verdict == 'caught' for row in harmless)} of {len(harmless)}",
        f"{max((row.harm for row in rows if row.verdict != 'caught'), default=0.0):.1f}",
    )


_HEADERS = ("model", "engine", "faults", "harmful", "build caught", "verify caught", "harmless caught", "worst missed")


def main(argv: Sequence[str] | None = None) -> int:
    """Plant faults, or look for false alarms; 1 where a harmful fault was missed or there was an alarm."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=300, help="about how many faults (default: %(default)s)")
    parser.add_argument("--clean", type=int, metavar="N", help="plant nothing: N builds and verifies of right engines")
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), help="default: all")
    parser.add_argument("--data", type=Path, help="folder or zip with labels.csv: measures OSNet's harm on persons")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="edgevis-faults-") as name:
        folder = Path(name)
        try:
            if arguments.clean is not None:
                return _report_alarms(list(_told_alarms(arguments, folder)), as_json=arguments.json)
            rows = []
            for row in plant(arguments.subjects, arguments.count, arguments.data, folder):
                rows.append(row)
                _say(
                    f"{len(rows):4} {time.perf_counter() - started:6.0f} s  {row.model} {row.engine}: "
                    f"{row.fault.kind} {row.fault.place[-40:]}: {row.verdict}, {row.measure} {-row.harm:+.1f}"
                )
        except EdgevisError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if arguments.json:
        print(json.dumps([{**to_json(row), "verdict": row.verdict} for row in rows], indent=2))
    else:
        missed = [row for row in rows if row.verdict.startswith("missed")]
        for row in missed:
            print(
                f"MISSED {row.model} {row.engine}: {row.fault.kind} in {row.fault.place}: {row.verdict}, {row.harm:.1f}"
            )
        print(text_table(_HEADERS, summary(rows)))
    return int(any(row.verdict.startswith("missed") for row in rows))


def _told_alarms(arguments: argparse.Namespace, folder: Path) -> Iterator[Alarm]:
    for number, alarm in enumerate(alarms(arguments.subjects, arguments.clean, folder), start=1):
        word = "FALSE ALARM " + (alarm.build or alarm.verify) if alarm.build or alarm.verify else "passed"
        _say(f"{number:4} {alarm.model} {alarm.engine}, {alarm.threads} threads, batches {alarm.batch_sizes}: {word}")
        yield alarm


def _report_alarms(rows: Sequence[Alarm], *, as_json: bool) -> int:
    builds, verifies = (sum(bool(getattr(alarm, name)) for alarm in rows) for name in ("build", "verify"))
    if as_json:
        print(json.dumps(to_json(rows), indent=2))
    else:
        print(f"{len(rows)} right engines: {builds} false alarms of the build, {verifies} of verify")
    return int(bool(builds or verifies))


def _short(error: Exception) -> str:
    return str(error)[:200]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
