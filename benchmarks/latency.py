"""Every engine of a model against PyTorch, side by side: ``python -m benchmarks.latency --model osnet-x0-25``.

Three things are timed for each engine, in turn with all others: PyTorch in eager mode on a tensor that is ready, the
engine on the same tensor, and ``Predictor.predict`` on an image, which is preprocessing, engine and postprocessing. So
what is said of ``Predictor`` is said against its interest: PyTorch's share of preprocessing is left out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from benchmarks import cold_start
from benchmarks.latency_chart import draw
from benchmarks.latency_row import EAGER, HEADERS, LatencyRow
from benchmarks.report import report
from edgevis import ExportError, InputError, Predictor, models
from runtime.bundle.bundle import SUFFIX, Bundle
from runtime.bundle.manifest import EngineRecord, Manifest
from runtime.common.arrays import Array
from runtime.common.command import run_command
from runtime.errors import BackendError
from runtime.images.preprocess import Preprocessor
from runtime.parity.latency import interleaved
from runtime.sessions.open import open_sessions
from runtime.sessions.session import Session
from runtime.verification.timing import batch_sizes, enroll_example, example_image


class _Timed:
    """Calls ``Predictor.predict`` on a batch and collects the times of its stages."""

    def __init__(self, predictor: Predictor, batch: int) -> None:
        self._predictor = predictor
        self._images = [example_image()] * batch
        self._stages: list[tuple[float, ...]] = []

    def __call__(self) -> None:
        speed = self._predictor.predict(self._images)[0].speed_ms
        self._stages.append(tuple(speed[stage] for stage in ("preprocess", "inference", "postprocess")))

    def shares(self) -> tuple[float, float, float]:
        before, engine, after = (statistics.median(column) for column in zip(*self._stages, strict=True))
        total = before + engine + after
        return before / total, engine / total, after / total


def measure(
    bundle: Bundle,
    batches: Sequence[int],
    *,
    keep: Callable[[EngineRecord], bool],
    seconds: float,
    threads: int | None,
    starts: int,
) -> Iterator[LatencyRow]:
    """Measure PyTorch and each engine of the bundle that ``keep`` selects and that opens here, at each batch size.

    Raises:
        BackendError: No such engine opens here.
        ModelError: The bundle's model is not one that this installation can build.
    """
    manifest = bundle.manifest
    module, shots = _eager(manifest)
    graph = manifest.deployment.image_graphs[-1]
    preprocess = Preprocessor(manifest.deployment.preprocess)
    with ExitStack() as stack:
        opened: dict[str, tuple[Session, Predictor]] = {}
        problems = []
        for record in filter(keep, manifest.engines):
            try:
                sessions = open_sessions(bundle, record, threads=threads)
                for session in sessions.values():
                    stack.callback(session.close)
                predictor = Predictor(bundle.path, backend=record.backend, precision=record.precision, threads=threads)
            except BackendError as error:
                problems.append(f"{record.name}: {error}")
                continue
            opened[record.name] = sessions[graph.name], stack.enter_context(predictor)
            enroll_example(predictor)
        if not opened:
            raise BackendError(f"{bundle.path}: no engine to measure; {'; '.join(problems) or 'none was asked for'}")
        for problem in problems:
            sys.stderr.write(f"left out: {problem}\n")

        started = {EAGER: cold_start.measure_eager(manifest, runs=starts)}
        for record in manifest.engines:
            if record.name in opened:
                started[record.name] = cold_start.measure(bundle.path, record, runs=starts)

        for batch in batches:
            tensor = preprocess([example_image()] * batch)
            timed = {name: _Timed(predictor, batch) for name, (_, predictor) in opened.items()}
            calls: dict[str, Callable[[], object]] = {EAGER: _forward(module, graph.name, tensor, shots)}
            for name, (session, _) in opened.items():
                calls[f"{name} alone"] = partial(session.run, {"image": tensor}, session.prepare(shots))
                calls[name] = timed[name]
            latencies = interleaved(calls, seconds=seconds * len(calls), min_rounds=5)
            eager = latencies[EAGER].p50_ms
            for name in (EAGER, *opened):
                alone = latencies[EAGER if name == EAGER else f"{name} alone"].p50_ms
                whole = latencies[name]
                yield LatencyRow(
                    model=manifest.model,
                    engine=name,
                    batch=batch,
                    p50_ms=whole.p50_ms,
                    p90_ms=whole.p90_ms,
                    p99_ms=whole.p99_ms,
                    rounds=whole.rounds,
                    images_per_second=batch / whole.p50_ms * 1e3,
                    engine_p50_ms=alone,
                    times_eager=eager / alone,
                    predictor_times_eager=eager / whole.p50_ms,
                    shares=timed[name].shares() if name in timed else None,
                    cold_start_s=started[name].total_s,
                    peak_memory_bytes=started[name].peak_memory_bytes,
                    threads=threads or torch.get_num_threads(),
                )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and, with ``--output``, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--model", nargs="+", default=[], help="build these for the CPU, and measure them")
    parser.add_argument("--bundle", nargs="+", type=Path, default=[], help="measure these")
    parser.add_argument("--backend", help="only engines of these backends, separated by commas")
    parser.add_argument("--precision", help="only engines of these precisions, separated by commas; built, too")
    parser.add_argument("--batch", default="1,8", help="images in one call, separated by commas (default: 1,8)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each contender and batch size (default: 2)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's and the backends' choice)")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes for the cold start (default: 3)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="also write latency.md, latency.json, latency.svg")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if not arguments.model and not arguments.bundle:
        parser.error("give --model or --bundle")
    return report(
        lambda: list(_measure(arguments)),
        headers=HEADERS,
        cells=LatencyRow.cells,
        as_json=arguments.json,
        files=arguments.output and arguments.output / "latency",
        draw=draw,
    )


def _measure(arguments: argparse.Namespace) -> Iterator[LatencyRow]:
    batches = batch_sizes(arguments.batch)
    backends, precisions = (set(text.split(",")) if text else None for text in (arguments.backend, arguments.precision))
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise InputError(f"--threads is {arguments.threads}; allowed: 1 or more")
        torch.set_num_threads(arguments.threads)

    def keep(record: EngineRecord) -> bool:
        return (backends is None or record.backend in backends) and (
            precisions is None or record.precision in precisions
        )

    with tempfile.TemporaryDirectory() as folder:
        paths = [*arguments.bundle, *(_build(name, Path(folder), arguments.precision) for name in arguments.model)]
        for path in paths:
            yield from measure(
                Bundle(path),
                batches,
                keep=keep,
                seconds=arguments.seconds,
                threads=arguments.threads,
                starts=arguments.starts,
            )


def _build(model: str, folder: Path, precision: str | None) -> Path:
    """Build a bundle of the model; its progress goes to standard error."""
    path = folder / f"{model}{SUFFIX}"
    command = [sys.executable, "-m", "export.build", "--model", model, "--target", "cpu", "--output", str(path)]
    command += ["--precision", precision] if precision else []
    done = subprocess.run(command, stdout=sys.stderr, check=False)  # noqa: S603 - ourselves
    if done.returncode:
        raise ExportError(f"the model {model!r} could not be built; the reason stands above")
    return path


def _eager(manifest: Manifest) -> tuple[torch.nn.Module, dict[str, Array]]:
    """The module, and the inputs of the predicting graph that an enrolment makes."""
    torch.manual_seed(0)
    declared = models.entry(manifest.model)
    module = models.module_from(declared, manifest.options)
    support: dict[str, Array] = {}
    for graph in manifest.deployment.image_graphs[:-1]:
        image = Preprocessor(manifest.deployment.preprocess)([example_image()])
        with torch.inference_mode():
            outputs = getattr(module, graph.name)(torch.from_numpy(image), torch.ones(1, *image.shape[2:]))
        support |= {tensor.name: array.numpy() for tensor, array in zip(graph.outputs, outputs, strict=True)}
    return module, support


def _forward(module: torch.nn.Module, graph: str, tensor: Array, shots: Mapping[str, Array]) -> Callable[[], object]:
    inputs = [torch.from_numpy(array) for array in (tensor, *shots.values())]

    def run() -> None:
        with torch.inference_mode():
            getattr(module, graph)(*inputs)

    return run


if __name__ == "__main__":
    sys.exit(run_command(main))
