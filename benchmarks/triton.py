"""What a Triton server adds: ``python -m benchmarks.triton BUNDLE…``.

A repository is written as ``python -m export.triton`` does, a server is started on it, and so many clients at once send
one picture each over HTTP, as fast as it answers; beside it, in the same run, one thread calls ``Predictor.embed`` or
``Predictor.predict`` with the same picture's bytes. The ratio of the first row to it is the price of the server, the
others show what its batching gives back.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.triton_server import TritonServer
from edgevis import InputError, Predictor
from export.triton.repository import write_predictor
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import EngineRecord
from runtime.common.command import run_command
from runtime.common.text import text_table
from runtime.tasks import load as load_task

HEADERS = ("bundle", "what", "answers/s", "p50 ms", "p99 ms", "errors")
CLIENTS = (1, 4, 16)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.triton", description=(__doc__ or "").partition(":")[0] + ", measured."
    )
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="folders NAME.edgevis")
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS, help="at once (default: 1 4 16)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a row (default: 5)")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def triton_rows(
    bundle: Bundle, *, record: EngineRecord | None = None, clients: Sequence[int] = CLIENTS, seconds: float = 5.0
) -> list[tuple[str, ...]]:
    """The rows of a bundle: the predictor in this process, then the server with each number of clients.

    Args:
        bundle: It takes single pictures: its model embeds them, or needs no enrolment.
        record: The engine; None for what ``Predictor`` picks here.
        clients: How many send requests at once.
        seconds: How long each row is measured.

    Raises:
        UnavailableError: There is no server, or it does not start.
        InputError: The model answers nothing without an enrolment.
    """
    output = _output_of(bundle)
    name = bundle.manifest.name
    deployment = bundle.manifest.deployment
    picture = _picture(deployment.preprocess.height, deployment.preprocess.width)
    backend, device, precision = (record.backend, record.device, record.precision) if record else ("auto", "auto", None)
    with Predictor(bundle.path, backend=backend, device=device, precision=precision) as predictor:
        call = partial(predictor.embed if output == "embedding" else predictor.predict, picture)
        here = f"Predictor, {predictor.info.backend} {predictor.info.precision}"
        rows = [(name, here, *measured(1, lambda: call, seconds))]
    with tempfile.TemporaryDirectory() as scratch:
        write_predictor(
            Path(scratch, "models"),
            name=name,
            bundle=str(bundle.path.resolve()),
            deployment=deployment,
            record=record,
        )
        with TritonServer(Path(scratch, "models"), Path(scratch, "log"), start_s=300) as server:
            for number in clients:
                connect = connection(server.address, name, output, picture)
                rows.append((name, f"Triton, clients: {number}", *measured(number, connect, seconds)))
    return rows


def measured(threads: int, connect: Callable[[], Callable[[], object]], seconds: float) -> tuple[str, ...]:
    """Answers per second, p50 and p99 in milliseconds, and the errors, of so many threads that call at once.

    Args:
        threads: How many.
        connect: Makes a thread's own call.
        seconds: How long they call; the first call of each is not counted.
    """
    taken: list[float] = []
    errors = Counter[str]()
    ready = threading.Barrier(threads)

    def work() -> None:
        try:
            call = connect()
            call()
        except Exception as error:  # what any client may meet is a row's last cell, not the end of the table
            errors[str(error)] += 1
            ready.abort()
            return
        try:
            ready.wait(timeout=60)
        except threading.BrokenBarrierError:
            return
        end = time.perf_counter() + seconds
        while (started := time.perf_counter()) < end:
            try:
                call()
            except Exception as error:
                errors[str(error)] += 1
            else:
                taken.append(time.perf_counter() - started)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    said = "; ".join(f"{number} x {text}" for text, number in errors.items()) or "0"
    if not taken:
        return ("", "", "", said)
    p50, p99 = np.quantile(taken, (0.5, 0.99)) * 1e3
    return (f"{len(taken) / seconds:.0f}", f"{p50:.2f}", f"{p99:.2f}", said)


def connection(address: str, model: str, output: str, picture: bytes) -> Callable[[], Callable[[], object]]:
    """What makes a client of a server for each thread, which then asks for one output of a picture's bytes."""
    import tritonclient.http as triton

    def connect() -> Callable[[], Any]:
        client = triton.InferenceServerClient(address)  # one for each thread: it is not made to be shared
        image = triton.InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[picture]], np.object_))
        wanted = [triton.InferRequestedOutput(output)]
        return lambda: client.infer(model, [image], outputs=wanted)

    return connect


def _output_of(bundle: Bundle) -> str:
    """What is asked for: embeddings need no enrolment."""
    task = bundle.manifest.deployment.task
    traits = load_task(task).TRAITS
    if traits.embedding is not None:
        return "embedding"
    if traits.enrolment == "nothing":
        return "result"
    raise InputError(f"{bundle.path}: a server answers nothing without an enrolment for the task {task}")


def _picture(height: int, width: int) -> bytes:
    """A JPEG with some detail, of the model's size."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))[1])


def _run(arguments: argparse.Namespace) -> int:
    for number in arguments.clients:
        if number < 1:
            raise InputError(f"--clients has {number}; allowed: 1 or more")
    rows = []
    for path in arguments.bundles:
        rows += triton_rows(Bundle(path), clients=arguments.clients, seconds=arguments.seconds)
    sys.stdout.write(text_table(HEADERS, rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
