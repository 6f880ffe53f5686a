"""Person re-identification: one graph ``embed``; of all enrolled views, the closest one names the person."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.enrolment.quality_bounds import REID
from runtime.results import Identification, Match
from runtime.tasks import Context, Task
from runtime.tasks._embedding import EmbeddingTask


def open_task(context: Context) -> Task:
    return EmbeddingTask(context, graph="embed", scoring="nearest", bounds=REID, result_from=_identification)


def _identification(ranking: tuple[Match, ...], label: str | None, speed_ms: Mapping[str, float]) -> Identification:
    return Identification(label, ranking[0].score if ranking else 0.0, ranking, speed_ms)
