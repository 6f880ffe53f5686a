"""Plans of a known content, for tests of where plans are kept."""

from __future__ import annotations

from runtime.backends._tensorrt.cache import PlanKey
from runtime.backends._tensorrt.compiler import BuiltPlan

KEY = PlanKey("ab" * 32, "{}", "tensorrt", "10.3.0", "SM87", "Orin", "CUDA 12.6 540.3.0")


class Builder:
    """Makes plans of a known content and counts them."""

    def __init__(self, plan: bytes = b"a plan", timing_cache: bytes = b"kernel times") -> None:
        self.made = BuiltPlan(plan, timing_cache)
        self.given: list[bytes] = []

    def __call__(self, timing_cache: bytes) -> BuiltPlan:
        self.given.append(timing_cache)
        return self.made


def same(plan: bytes) -> bytes:
    return plan
