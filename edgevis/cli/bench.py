"""Time every engine of a bundle on this machine, one round of each in turn, so that a busy machine favours none."""

from __future__ import annotations

import argparse
import functools
import warnings
from contextlib import ExitStack

import numpy as np

from edgevis import BackendError, InputError, Predictor
from edgevis.cli._common import print_json
from runtime.bundle import Bundle
from runtime.jsondata import to_json
from runtime.latency import interleaved
from runtime.text import text_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder NAME.edgevis")
    parser.add_argument("--batch", default="1,8", help="batch sizes, separated by commas (default: 1,8)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each batch size (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads for the engines (default: the backend's choice)")


def run(arguments: argparse.Namespace) -> int:
    sizes = _batch_sizes(arguments.batch)
    bundle = Bundle(arguments.bundle)
    rng = np.random.default_rng(0)
    # A crop as a detector would cut it from a 1080p frame. Its content does not change how long an engine takes.
    crop = rng.integers(0, 256, (480, 240, 3), np.uint8)
    entries = []
    with ExitStack() as stack:
        predictors: dict[str, Predictor] = {}
        for record in bundle.manifest.engines:
            try:
                opened = Predictor(
                    bundle.path,
                    backend=record.backend,
                    device=record.device,
                    precision=record.precision,
                    threads=arguments.threads,
                )
            except BackendError as error:
                warnings.warn(f"{record.name} is left out: {error}", RuntimeWarning, stacklevel=1)
                continue
            predictors[record.name] = stack.enter_context(opened)
        if not predictors:
            raise BackendError(f"{bundle.path}: no engine can be opened here")
        for size in sizes:
            calls = {name: functools.partial(predictor.embed, [crop] * size) for name, predictor in predictors.items()}
            for name, latency in interleaved(calls, seconds=arguments.seconds).items():
                throughput = size / latency.p50_ms * 1e3
                entries.append({"engine": name, "batch": size, **to_json(latency), "images_per_second": throughput})
    if arguments.json:
        print_json(
            {
                "bundle": str(bundle.path),
                "image": "480x240 crop to embedding, preprocessing included",
                "results": entries,
            }
        )
        return 0
    headers = ("engine", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s")
    rows = [
        (
            entry["engine"],
            str(entry["batch"]),
            *(f"{entry[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
            f"{entry['images_per_second']:.0f}",
        )
        for entry in entries
    ]
    print(text_table(headers, rows))
    return 0


def _batch_sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or max(sizes) > 4096:
        raise InputError(f"--batch is {text!r}; allowed: sizes of 1 to 4096, separated by commas, such as 1,8")
    return sizes
