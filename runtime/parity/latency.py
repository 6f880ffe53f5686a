"""Timing that a busy machine does not bias: contenders take turns, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles of the time of one call, in milliseconds, over ``rounds`` calls."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    rounds: int


def interleaved(
    contenders: Mapping[str, Callable[[], object]], *, seconds: float, min_rounds: int = 10, pause: float = 0.0
) -> dict[str, Latency]:
    """Time each contender once per round until ``seconds`` have passed, after two warm-up rounds.

    Before it is timed, a contender is called once untimed: caches are then its own, and threads that the one before
    it may have left spinning have stopped.

    Args:
        contenders: The calls to time, by name.
        seconds: The measuring time for all contenders together.
        min_rounds: Rounds to measure at least, however long they take.
        pause: Seconds to wait before a contender's turn, not counted: where another one's threads spin for longer
            than an untimed call takes.
    """
    for call in list(contenders.values()) * 2:
        call()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < min_rounds or time.perf_counter() < end:
        for name, call in contenders.items():
            time.sleep(pause)
            call()
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: _quantiles(values) for name, values in taken.items()}


def _quantiles(seconds: list[float]) -> Latency:
    p50, p90, p99 = np.quantile(seconds, (0.5, 0.9, 0.99)) * 1e3
    return Latency(float(p50), float(p90), float(p99), len(seconds))
