"""A table of one GPU: ``python -m benchmarks.gpu BUNDLE…``, or ``make gpu``.

Each section is measured by itself, with the bundles' GPU engines: versions and card; the plans, built on this machine,
with parity and latency; what batches of any size cost; many threads at once; where resident inputs lie; a step of
training; a Triton server; the tests that need a GPU. A section that fails, or for which no time is left, says so in the
table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import triton
from edgevis import EdgevisError
from runtime.backends._cuda import Device, open_device
from runtime.backends._tensorrt.pool import LanePool, lane_pool
from runtime.backends._tensorrt.resident import VARIABLE
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord
from runtime.common.arrays import Array
from runtime.common.text import markdown_table, text_table
from runtime.parity.latency import interleaved
from runtime.selection.device_build import build_on_device, can_build_here, with_local_parity
from runtime.sessions.open import open_sessions
from runtime.sessions.session import Session

LANE_HEADERS = ("batches", "images/s", "p50 ms", "p99 ms", "lanes made", "graph launches")
THREAD_HEADERS = ("threads", "calls", "errors", "calls/s", "lanes made")
PLAN_HEADERS = ("bundle", "engine", "build s", "parity", "ms/image")
RESIDENT_HEADERS = ("bundle", "engine", "memory", "p50 ms", "p99 ms")
_TESTS_S = 240.0

Rows = list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the table; ``measure`` gives its rows."""

    title: str
    headers: tuple[str, ...]
    measure: Callable[[], Rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the table; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="folders NAME.edgevis for this kind of GPU")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the table as Markdown (default: gpu-CARD.md)")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no section after these (default: 10)")
    parser.add_argument("--calls", type=int, default=300, help="inferences of a measurement (default: 300)")
    arguments = parser.parse_args(argv)
    try:
        device = open_device()
        engines = [
            (bundle, record)
            for bundle in map(Bundle, arguments.bundles)
            for record in bundle.manifest.engines
            if can_build_here(record)
        ]
    except EdgevisError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = table(sections(device, engines, arguments.calls), minutes=arguments.minutes)
    name = device.info.name.replace(" ", "-").replace("/", "-")
    output = arguments.output or Path(f"gpu-{name}.md")
    output.write_text(f"# {device.info.name}\n\n{text}", encoding="utf-8")
    print(f"{text}\nwritten to {output}")
    return 0


def table(parts: Sequence[Section], *, minutes: float) -> str:
    """All sections as Markdown; one that fails says why, and none begins after so many minutes."""
    end = time.monotonic() + 60 * minutes
    written = []
    for section in parts:
        headers, started = section.headers, time.monotonic()
        try:
            rows = section.measure() if started < end else [("left out: no time",)]
        except (EdgevisError, OSError, ImportError, RuntimeError) as error:
            rows = [(f"failed: {error}",)]
        cells = [(*row, *[""] * (len(headers) - len(row))) for row in rows]
        print(f"{section.title}\n{text_table(headers, cells)}\n", flush=True)
        seconds = time.monotonic() - started
        written.append(f"## {section.title}\n\n{markdown_table(headers, cells)}\n\n{seconds:.0f} s\n")
    return "\n".join(written)


def sections(device: Device, engines: Sequence[tuple[Bundle, EngineRecord]], calls: int) -> list[Section]:
    """The sections of a GPU and these engines."""
    first = engines[:1]
    pool = lane_pool(device)
    return [
        Section("Card and versions", ("what", "which"), lambda: versions(device)),
        Section("Plans", PLAN_HEADERS, lambda: [plan_row(bundle, record) for bundle, record in engines]),
        Section(
            "Batches",
            LANE_HEADERS,
            lambda: [row for bundle, record in first for row in _batches(bundle, record, pool, calls)],
        ),
        Section(
            "Threads",
            THREAD_HEADERS,
            lambda: [row for bundle, record in first for row in _threads(bundle, record, pool, calls)],
        ),
        Section(
            "Memory of resident inputs",
            RESIDENT_HEADERS,
            lambda: [row for bundle, record in engines for row in resident_rows(bundle, record)],
        ),
        Section("A step of training", ("model", "batch", "ms"), training_rows),
        Section(
            "Triton",
            triton.HEADERS,
            lambda: [row for bundle, record in first for row in triton.triton_rows(bundle, record=record)],
        ),
        Section("Tests that need a GPU", ("result",), _tests),
    ]


def versions(device: Device) -> Rows:
    """The card, its driver, and the packages that use it."""
    info = device.info
    rows: Rows = [
        ("GPU", f"{info.name} {info.sm}, {info.memory_bytes / 2**30:.0f} GiB" + (", integrated" * info.integrated)),
        ("driver", info.driver),
        ("Python", sys.version.split()[0]),
    ]
    for module in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "onnxruntime", "torch"):
        try:
            rows.append((module, str(__import__(module).__version__)))
        except Exception as error:  # a broken package is what this table is to show
            rows.append((module, f"none: {type(error).__name__}: {error}"))
    return rows


def plan_row(bundle: Bundle, record: EngineRecord) -> tuple[str, ...]:
    """Build an engine here, or take what the cache has, with its parity and latency."""
    seconds: list[float] = []
    try:
        done = build_on_device(bundle, record, report=lambda graph, result: seconds.append(result.seconds))
    except EdgevisError as error:
        return (bundle.manifest.model, record.name, "", f"failed: {error}")
    parity = "passed" if done.holds_parity else "beyond its tolerance"
    latency = "" if done.latency_ms is None else f"{done.latency_ms:.2f}"
    return (bundle.manifest.model, record.name, f"{sum(seconds):.0f}", parity, latency)


def batch_rows(run: Callable[[int], object], pool: LanePool, *, largest: int, calls: int) -> Rows:
    """The largest batch alone, and any batches: a second row near the first one is what is wanted.

    Args:
        run: One call with so many images.
        pool: The lanes that it runs in.
        largest: The largest batch.
        calls: The calls of a row.
    """
    rows: Rows = []
    for name, sizes in ((f"{largest}", [largest]), (f"1..{largest}", list(range(1, largest + 1)))):
        draw = np.random.default_rng(0)
        before, taken, images = Counter(pool.counts), [], 0
        for _ in range(calls):
            rows_of_call = int(draw.choice(sizes))
            started = time.perf_counter()
            run(rows_of_call)
            taken.append(time.perf_counter() - started)
            images += rows_of_call
        made = pool.counts - before
        p50, p99 = np.quantile(taken, (0.5, 0.99)) * 1e3
        speed = f"{images / sum(taken):.0f}"
        rows.append((name, speed, f"{p50:.2f}", f"{p99:.2f}", str(made["lanes"]), str(made["launches"])))
    return rows


def thread_rows(run: Callable[[int], object], pool: LanePool, *, largest: int, calls: int) -> Rows:
    """Calls of the largest batch by 1, 4, 16 and 32 threads; none may fail."""
    rows: Rows = []
    for threads in (1, 4, 16, 32):
        before, errors = Counter(pool.counts), Counter[str]()
        each = max(calls // threads, 1)

        def work(errors: Counter[str] = errors, each: int = each) -> None:
            for _ in range(each):
                try:
                    run(largest)
                except EdgevisError as error:
                    errors[str(error)] += 1

        workers = [threading.Thread(target=work) for _ in range(threads)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        taken = time.perf_counter() - started
        made, total = pool.counts - before, each * threads
        said = "; ".join(errors) or "0"
        rows.append((str(threads), str(total), said, f"{total / taken:.1f}", str(made["lanes"])))
    return rows


def resident_rows(bundle: Bundle, record: EngineRecord) -> Rows:
    """The latency of graphs with resident inputs, in turn with them in device memory and in mapped memory."""
    deployment = bundle.manifest.deployment
    graph = deployment.image_graphs[-1]
    kept = [tensor.name for tensor in graph.inputs if not tensor.batched]
    if not kept or not with_local_parity(bundle, record).holds_parity:
        return []
    calls: dict[str, Callable[[], object]] = {}
    opened: list[Session] = []
    try:
        for kind in ("device", "mapped"):
            with _set(VARIABLE, kind):
                sessions = open_sessions(bundle, record, threads=None)
                opened += sessions.values()
                session = sessions[graph.name]
                arrays = _inputs(session, 1)
                resident = session.prepare({name: arrays[name] for name in kept})
                feeds = {name: array for name, array in arrays.items() if name not in kept}
                session.run(feeds, resident)  # its lane and its resident inputs lie there from now on
                calls[kind] = partial(session.run, feeds, resident)
        measured = interleaved(calls, seconds=2.0)
    finally:
        for session in opened:
            session.close()
    return [
        (bundle.manifest.model, record.name, kind, f"{latency.p50_ms:.3f}", f"{latency.p99_ms:.3f}")
        for kind, latency in measured.items()
    ]


def training_rows() -> Rows:
    """Forward and backward of one model with PyTorch on the GPU."""
    import torch

    from edgevis import models

    if not torch.cuda.is_available():
        return [("torch finds no GPU",)]
    module, batch = models.create("osnet-x0-25").cuda().train(), 32
    images = torch.randn(batch, 3, 256, 128, device="cuda")
    taken = []
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        module(images).square().mean().backward()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return [("osnet-x0-25", str(batch), f"{np.median(taken[3:]) * 1e3:.1f}")]


def _batches(bundle: Bundle, record: EngineRecord, pool: LanePool, calls: int) -> Rows:
    with _opened(bundle, record) as session:
        return batch_rows(_call(session), pool, largest=session.max_batch, calls=calls)


def _threads(bundle: Bundle, record: EngineRecord, pool: LanePool, calls: int) -> Rows:
    with _opened(bundle, record) as session:
        return thread_rows(_call(session), pool, largest=session.max_batch, calls=calls)


@contextmanager
def _opened(bundle: Bundle, record: EngineRecord) -> Iterator[Session]:
    sessions = open_sessions(bundle, record, threads=None)
    try:
        yield sessions[bundle.manifest.deployment.graphs[0].name]
    finally:
        for session in sessions.values():
            session.close()


def _call(session: Session) -> Callable[[int], object]:
    inputs = {rows: _inputs(session, rows) for rows in range(1, session.max_batch + 1)}
    return lambda rows: session.run(inputs[rows], finite=False)


def _inputs(session: Session, rows: int) -> dict[str, Array]:
    """Random inputs, with one of everything that is not the batch."""
    draw = np.random.default_rng(rows)
    return {
        tensor.name: draw.standard_normal(
            [rows if size == "N" else 1 if isinstance(size, str) else size for size in tensor.shape]
        ).astype(tensor.dtype)
        for tensor in session.graph.inputs
    }


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _tests() -> Rows:
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests/hardware"]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command, capture_output=True, text=True, check=False, timeout=_TESTS_S
        )
    except subprocess.TimeoutExpired as error:
        return [(f"stopped after {error.timeout:.0f} s",)]
    lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED") or " passed" in line]
    return [(line,) for line in lines] or [(done.stderr.strip() or "no tests",)]


if __name__ == "__main__":
    sys.exit(main())
