"""The milliseconds that the stages of a prediction took."""

from __future__ import annotations

import time


class StageTimer:
    """Times stages that follow one another; a stage that ends more than once adds up."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    def end(self, stage: str) -> None:
        """Count the time since the last stage's end, or since the timer was made, as this stage's."""
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._started
        self._started = now

    def speed_ms(self, images: int) -> dict[str, float]:
        """Milliseconds for one of ``images`` images, by stage, in the order in which the stages first ended."""
        return {stage: seconds * 1e3 / images for stage, seconds in self._seconds.items()}
