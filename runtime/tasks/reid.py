"""Person re-identification: one graph ``embed``; of all enrolled views, the closest one names the person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.bundle.manifest import Decisions
from runtime.common.arrays import Array
from runtime.enrolment.quality_bounds import REID
from runtime.results import Identification, Match
from runtime.tasks import Context, SingleGraph, Task, TaskTraits
from runtime.tasks._embedding import EmbeddingSettings, EmbeddingTask, embedding_agreement

_EMBEDDING = "embed/embedding"

TRAITS = TaskTraits(Identification, embedding=_EMBEDDING, single_graph=SingleGraph("embed", "embedding", ("D",)))


def open_task(context: Context) -> Task:
    return EmbeddingTask(context, graph="embed", scoring="nearest", bounds=REID, result_from=_identification)


def settings_from(postprocess: Mapping[str, Any]) -> EmbeddingSettings:
    return EmbeddingSettings.read(postprocess)


def agreement(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> Decisions | None:
    return embedding_agreement(_EMBEDDING, reference, actual)


def _identification(ranking: tuple[Match, ...], label: str | None, speed_ms: Mapping[str, float]) -> Identification:
    return Identification(label, ranking[0].score if ranking else 0.0, ranking, speed_ms)
