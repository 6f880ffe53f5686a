"""Times the engines of a bundle on this machine, one round of each in turn, so that none is favoured."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from runtime import tasks
from runtime.bundle.bundle import Bundle
from runtime.bundle.spec import Precision
from runtime.errors import BackendError, InputError
from runtime.images.decode import Image
from runtime.parity.latency import Latency, interleaved
from runtime.predictor import Predictor

_log = logging.getLogger("edgevis.bench")

MEASURED = "a 240x480 image to its result among one enrolled example, preprocessing included"
HEADERS = ("engine", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s")


@dataclass(frozen=True, slots=True)
class Timing:
    """The latency of one engine for one batch size."""

    engine: str
    batch: int
    latency: Latency
    images_per_second: float

    def cells(self) -> tuple[str, ...]:
        """A row under :data:`HEADERS`."""
        times = (self.latency.p50_ms, self.latency.p90_ms, self.latency.p99_ms)
        return (self.engine, str(self.batch), *(f"{ms:.2f}" for ms in times), f"{self.images_per_second:.0f}")


def time_engines(
    bundle: Bundle,
    batches: list[int],
    *,
    seconds: float,
    threads: int | None = None,
    precision: Precision | None = None,
) -> list[Timing]:
    """Time all engines that open here, in turn.

    Args:
        bundle: The bundle.
        batches: The batch sizes.
        seconds: The measuring time for each batch size, all engines together, above 0.
        threads: CPU threads for each engine.
        precision: Time only the engines of this precision; None times all.

    Raises:
        InputError: ``seconds`` is no such number.
        BackendError: No engine opens.
        UnknownBackendError: No engine has that precision; the message lists those it has.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds is {seconds:g}; allowed: a number > 0")
    image = example_image()
    timings = []
    with ExitStack() as stack:
        predictors = {
            name: stack.enter_context(opened)
            for name, opened in each_engine(bundle, threads=threads, precision=precision)
        }
        if not predictors:
            raise BackendError(f"{bundle.path}: no engine can be opened here")
        for predictor in predictors.values():
            enroll_example(predictor)
        for size in batches:
            calls = {
                name: functools.partial(predictor.predict, [image] * size) for name, predictor in predictors.items()
            }
            for name, latency in interleaved(calls, seconds=seconds).items():
                timings.append(Timing(name, size, latency, size / latency.p50_ms * 1e3))
    return timings


def example_image() -> Image:
    """A crop of a detector's size from a 1080p frame. Its content does not change the latency."""
    return np.random.default_rng(0).integers(0, 256, (480, 240, 3), np.uint8)


def enroll_example(predictor: Predictor) -> None:
    """Enrol one example where the task enrols anything; what it shows does not change how long a prediction takes."""
    enrolment = tasks.load(predictor.info.task).TRAITS.enrolment
    if enrolment == "nothing":
        return
    image, mask = example_image(), None
    if enrolment == "images and masks":
        mask = np.zeros(image.shape[:2], bool)
        mask[: image.shape[0] // 2] = True
    predictor.enroll("example", image, masks=mask)


def each_engine(
    bundle: Bundle, *, threads: int | None = None, precision: Precision | None = None
) -> Iterator[tuple[str, Predictor]]:
    """A predictor, for the caller to close, on each engine of a precision that opens here; a warning names the others.

    Without a precision on each engine.
    """
    for record in bundle.engines_of(precision):
        try:
            opened = Predictor(
                bundle.path,
                backend=record.backend,
                device=record.device,
                precision=record.precision,
                threads=threads,
            )
        except BackendError as error:
            _log.warning("%s is left out: %s", record.name, error)
        else:
            yield record.name, opened


def batch_sizes(text: str) -> list[int]:
    """Parses ``--batch``; InputError when it is not sizes separated by commas."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or max(sizes) > 4096:
        raise InputError(f"--batch is {text!r}; allowed: sizes of 1 to 4096, separated by commas, such as 1,8")
    return sizes
