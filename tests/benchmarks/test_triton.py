"""What the benchmark of a Triton server counts; the server itself is run in tests/export/triton."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks import triton
from runtime.errors import UnavailableError


def test_threads_call_at_once_and_errors_are_named() -> None:
    calls = iter(range(100_000))

    def connect() -> Callable[[], object]:
        def call() -> None:
            time.sleep(0.01)
            if next(calls) % 2:
                raise UnavailableError("refused")

        return call

    answers, p50, p99, errors = triton.measured(1, connect, 0.3)
    assert float(answers) > 0
    assert 10 <= float(p50) <= float(p99)
    assert errors.endswith(" x refused")


def test_a_thread_that_gets_no_answer_ends_the_others() -> None:
    def connect() -> Callable[[], object]:
        raise UnavailableError("no server")

    assert triton.measured(4, connect, 60.0) == ("", "", "", "4 x no server")
