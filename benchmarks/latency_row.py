"""One row of the table of :mod:`benchmarks.latency`."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.common.text import size_text

EAGER = "PyTorch eager"
HEADERS = (
    "model",
    "engine",
    "batch",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "images/s",
    "engine alone ms",
    "× eager",
    "Predictor × eager",
    "pre / engine / post",
    "cold start s",
    "peak memory",
)


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """The latency of one engine at one batch size.

    Attributes:
        model: The model's name.
        engine: ``backend-precision``, or :data:`EAGER`.
        batch: Images in one call.
        p50_ms, p90_ms, p99_ms: Quantiles of one call of ``Predictor.predict``; of PyTorch, of its forward.
        rounds: The number of calls.
        images_per_second: Of ``Predictor.predict``, at the median.
        engine_p50_ms: The engine on a tensor that is ready.
        times_eager: The speed-up of the engine over PyTorch's forward, by the medians.
        predictor_times_eager: The speed-up of ``Predictor.predict`` over PyTorch's forward.
        shares: The shares of a prediction that are preprocessing, engine and postprocessing, 0..1; None for PyTorch.
        cold_start_s: From a fresh interpreter to the first result, the median over processes.
        peak_memory_bytes: The most that such a process held, batch 1.
        threads: PyTorch's, and each engine's unless it was told otherwise.
    """

    model: str
    engine: str
    batch: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    rounds: int
    images_per_second: float
    engine_p50_ms: float
    times_eager: float
    predictor_times_eager: float
    shares: tuple[float, float, float] | None
    cold_start_s: float
    peak_memory_bytes: int
    threads: int

    def cells(self) -> tuple[str, ...]:
        """The row's cells under :data:`HEADERS`."""
        return (
            self.model,
            self.engine,
            str(self.batch),
            *(f"{ms:.2f}" for ms in (self.p50_ms, self.p90_ms, self.p99_ms)),
            f"{self.images_per_second:.1f}",
            f"{self.engine_p50_ms:.2f}",
            f"{self.times_eager:.2f}",
            f"{self.predictor_times_eager:.2f}",
            "–" if self.shares is None else " / ".join(f"{share:.0%}" for share in self.shares),
            f"{self.cold_start_s:.2f}",
            size_text(self.peak_memory_bytes),
        )
