"""The gallery beside other nearest-neighbour search libraries: ``python -m benchmarks.gallery``.

All engines hold the same rows and answer the same queries in turn. Rows are made: persons in a space of 64 dimensions,
20 views of each, turned into that of the embeddings with some noise. ``recall`` is the share of the true ten nearest
rows that an engine's ten contain; an index searches as widely as it must for 0.99. Competitors that are not installed
are left out: ``pip install numkong faiss-cpu usearch``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gallery_engines as engines
from benchmarks.report import report
from edgevis import EdgevisError, InputError
from runtime.common.arrays import Array, unit_rows
from runtime.common.command import run_command
from runtime.parity.latency import Latency, interleaved

HEADERS = (
    "rows",
    "engine",
    "add ms",
    "remove ms",
    "add + search ms",
    "load s",
    "memory × rows",
    "search 1 ms",
    "× product",
    "search {batch} ms",
    "× product",
    "recall@10",
)
PRODUCT = "NumPy product alone"
_TOP_K = 10
_RECALL = 0.99
_PAUSE = 0.1  # seconds after each contender, for which threads of BLAS and OpenMP go on spinning on the cores
_WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)  # of an index's search

# Prints the seconds that loading took and the bytes that it holds since.
_CHILD = """
import sys, time
from pathlib import Path
from benchmarks import gallery_engines as engines
def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")) * 1024
name, path, dimension = sys.argv[1:]
engines.prepare(name)
before = held()
start = time.perf_counter()
engine = engines.load(name, Path(path), int(dimension))
print(time.perf_counter() - start, held() - before)
"""


@dataclass(frozen=True, slots=True)
class SearchRow:
    """One engine at one size; medians, None where the engine has no such verb.

    Attributes:
        rows, dimension: The number of rows, and of their components.
        engine: The engine's name.
        exact: Whether it always finds the nearest.
        add_ms, remove_ms: Adding or removing one row.
        add_and_search_ms: Adding one row and answering the next query.
        load_s: Loading from a file.
        memory_ratio: The memory that it holds, in multiples of the float32 rows.
        single_ms, batch_ms: A search with one query, and with ``batch``.
        single_ratio, batch_ratio: In multiples of NumPy's product of the queries and all rows, without a ranking.
        batch: Queries of a batch.
        recall: Of the ten nearest, 0..1.
    """

    rows: int
    dimension: int
    engine: str
    exact: bool
    add_ms: float | None
    remove_ms: float | None
    add_and_search_ms: float | None
    load_s: float | None
    memory_ratio: float | None
    single_ms: float
    single_ratio: float
    batch_ms: float
    batch_ratio: float
    batch: int
    recall: float | None

    def cells(self) -> tuple[str, ...]:
        """The row's cells under :data:`HEADERS`."""
        return (
            str(self.rows),
            self.engine,
            _text(self.add_ms),
            _text(self.remove_ms),
            _text(self.add_and_search_ms),
            _text(self.load_s),
            _text(self.memory_ratio),
            _text(self.single_ms),
            _text(self.single_ratio),
            _text(self.batch_ms),
            _text(self.batch_ratio),
            f"{_text(self.recall, 3)}{' exact' if self.exact and self.recall is not None else ''}",
        )


def people(count: int, dimension: int, *, seed: int = 0) -> tuple[Array, Array]:
    """(count, D) enrolled rows and (64, D) queries, which are further views of some of them."""
    random = np.random.default_rng(seed)
    turn = random.standard_normal((64, dimension), np.float32)
    centres = random.standard_normal((-(-count // 20), 64), np.float32)

    def views(of: Array) -> Array:
        latent = centres[of] + np.float32(0.6) * random.standard_normal((len(of), 64), np.float32)
        rows = latent @ turn + random.standard_normal((len(of), dimension), np.float32)
        return unit_rows(rows)

    parts = [views(np.arange(begin, min(begin + 10_000, count)) // 20) for begin in range(0, count, 10_000)]
    return np.concatenate(parts), views(random.integers(0, len(centres), 64))


def contenders(rows: Array, *, indexes: bool) -> dict[str, Callable[[], Any]]:
    """The factories of the installed engines; the gallery first, indexes only if requested."""
    factories: dict[str, Callable[[], Any]] = {
        f"edgevis ({kernel or 'no kernel'})": partial(engines.EdgevisGallery, rows, kernel)
        for kernel in engines.galleries()
    }
    factories["NumPy"] = partial(engines.Numpy, rows)
    if engines.has("faiss"):
        factories["FAISS Flat"] = partial(engines.Faiss, rows, "Flat")
        factories["FAISS fp16, refined"] = partial(engines.Faiss, rows, "SQfp16", refined=True)
        factories["FAISS SQ8, refined"] = partial(engines.Faiss, rows, "SQ8", refined=True)
    if engines.has("usearch"):
        factories["USearch exact"] = partial(engines.UsearchExact, rows)
    if indexes and engines.has("faiss"):
        factories["FAISS IVF (index)"] = partial(engines.Faiss, rows, f"IVF{max(4, int(len(rows) ** 0.5))},Flat")
        factories["FAISS HNSW (index)"] = partial(engines.Faiss, rows, "HNSW32,Flat")
    if indexes and engines.has("usearch"):
        factories["edgevis (index)"] = partial(engines.IndexedGallery, rows, None)
        factories["USearch HNSW fp16 (index)"] = partial(engines.Usearch, rows)
    return factories


def measure(
    sizes: Sequence[int], *, dimension: int, batch: int, seconds: float, indexes: bool, memory: bool
) -> Iterator[SearchRow]:
    """Measure each engine at each size."""
    for size in sizes:
        rows, queries = people(size, dimension)
        with tempfile.TemporaryDirectory() as folder:
            yield from _at(rows, queries, batch, seconds, indexes, Path(folder) if memory else None)


def _at(
    rows: Array, queries: Array, batch: int, seconds: float, indexes: bool, folder: Path | None
) -> Iterator[SearchRow]:
    truth = np.argsort(-(queries.astype(np.float64) @ rows.T), axis=1, kind="stable")[:, :_TOP_K]
    opened = {name: make() for name, make in contenders(rows, indexes=indexes).items()}
    recalls = {name: _widened(engine, queries, truth) for name, engine in opened.items()}
    plain = engines.Numpy(rows)
    many = np.resize(queries, (batch, rows.shape[1]))
    times: dict[int, dict[str, Latency]] = {}
    for count, query_batch in ((1, queries[:1]), (batch, many)):
        calls: dict[str, Callable[[], object]] = {PRODUCT: partial(plain.product, query_batch)}
        calls |= {name: partial(engine.search, query_batch, _TOP_K) for name, engine in opened.items()}
        times[count] = interleaved(calls, seconds=seconds * len(calls), min_rounds=5, pause=_PAUSE)
    for name in (PRODUCT, *opened):
        engine = opened.get(name)
        add, remove, both = _edits(engine, rows, queries) if hasattr(engine, "add") else (None, None, None)
        load, held = _loaded(name, engine, rows, folder) if folder and hasattr(engine, "save") else (None, None)
        yield SearchRow(
            rows=len(rows),
            dimension=rows.shape[1],
            engine=name,
            exact=engine is None or engine.exact,
            add_ms=add,
            remove_ms=remove,
            add_and_search_ms=both,
            load_s=load,
            memory_ratio=held,
            single_ms=times[1][name].p50_ms,
            single_ratio=times[1][name].p50_ms / times[1][PRODUCT].p50_ms,
            batch_ms=times[batch][name].p50_ms,
            batch_ratio=times[batch][name].p50_ms / times[batch][PRODUCT].p50_ms,
            batch=batch,
            recall=recalls.get(name),
        )


def _widened(engine: Any, queries: Array, truth: Array) -> float:
    """The recall of an engine; an index is first widened until it reaches the required recall."""
    for width in _WIDTHS:
        wider = hasattr(engine, "widen") and engine.widen(width)
        actual = engine.search(queries, truth.shape[1])
        pairs = zip(actual.tolist(), truth.tolist(), strict=True)
        recall = statistics.mean(len(set(result) & set(expected)) / len(expected) for result, expected in pairs)
        if recall >= _RECALL or not wider:
            break
    return recall


def _edits(engine: Any, rows: Array, queries: Array, *, runs: int = 5) -> tuple[float, float | None, float]:
    """The milliseconds to add a row, to remove one, and to add one and answer the next query."""
    taken: list[tuple[float, float | None, float]] = []
    for index in range(runs):
        number = len(rows) + index
        start = time.perf_counter()
        engine.add(number, queries[index : index + 1])
        added = time.perf_counter()
        engine.search(queries[index : index + 1], _TOP_K)
        searched = time.perf_counter()
        try:
            engine.remove(number if not isinstance(engine, engines.Numpy) else len(rows))
            removed = (time.perf_counter() - searched) * 1e3
        except RuntimeError:  # FAISS, of an index that cannot forget
            removed = None
        taken.append(((added - start) * 1e3, removed, (searched - start) * 1e3))
    add, remove, both = zip(*taken, strict=True)
    known = [value for value in remove if value is not None]
    return statistics.median(add), statistics.median(known) if known else None, statistics.median(both)


def _loaded(name: str, engine: Any, rows: Array, folder: Path) -> tuple[float, float]:
    """The seconds to load an engine in a fresh process, and its memory there in multiples of the rows."""
    path = folder / "saved"
    path.unlink(missing_ok=True)
    engine.save(path)
    command = [sys.executable, "-c", _CHILD, name, str(path), str(rows.shape[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
    if done.returncode:
        raise EdgevisError(f"{name} cannot be loaded: {done.stderr.strip().splitlines()[-1]}")
    seconds, held = done.stdout.split()
    return float(seconds), float(held) / rows.nbytes


def _text(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per engine and size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    parser.add_argument("--rows", default="1000,10000,100000", help="how many, separated by commas")
    parser.add_argument("--dimension", type=int, default=512, help="of an embedding (default: 512)")
    parser.add_argument("--batch", type=int, default=32, help="queries of a batch (default: 32)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each engine and size (default: 1)")
    parser.add_argument("--indexes", action="store_true", help="indexes, too: they take minutes to build")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that load files")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: list(
            measure(
                _sizes(arguments.rows),
                dimension=arguments.dimension,
                batch=arguments.batch,
                seconds=arguments.seconds,
                indexes=arguments.indexes,
                memory=not arguments.no_memory,
            )
        ),
        headers=[header.format(batch=arguments.batch) for header in HEADERS],
        cells=SearchRow.cells,
        as_json=arguments.json,
    )


def _sizes(text: str) -> list[int]:
    sizes = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(sizes) < 2 * _TOP_K:
        raise InputError(f"--rows is {text!r}; allowed: numbers of {2 * _TOP_K} or more, separated by commas")
    return sizes


if __name__ == "__main__":
    sys.exit(run_command(main))
