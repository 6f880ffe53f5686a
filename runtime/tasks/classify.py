"""Few-shot classification: one graph ``encode``; the mean of a class's shots is its prototype (Snell et al., 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.bundle.manifest import Decisions
from runtime.common.arrays import Array
from runtime.enrolment.quality_bounds import CLASSIFY
from runtime.errors import EnrolmentError
from runtime.results import Classification, Match
from runtime.tasks import Context, SingleGraph, Task, TaskTraits
from runtime.tasks._embedding import EmbeddingSettings, EmbeddingTask, embedding_agreement

_EMBEDDING = "encode/embedding"

TRAITS = TaskTraits(Classification, embedding=_EMBEDDING, single_graph=SingleGraph("encode", "embedding", ("D",)))


def open_task(context: Context) -> Task:
    return EmbeddingTask(context, graph="encode", scoring="prototype", bounds=CLASSIFY, result_from=_classification)


def settings_from(postprocess: Mapping[str, Any]) -> EmbeddingSettings:
    return EmbeddingSettings.read(postprocess)


def agreement(reference: Mapping[str, Array], actual: Mapping[str, Array]) -> Decisions | None:
    return embedding_agreement(_EMBEDDING, reference, actual)


def _classification(ranking: tuple[Match, ...], label: str | None, speed_ms: Mapping[str, float]) -> Classification:
    if not ranking:
        raise EnrolmentError("no class is enrolled; enrol at least one: predictor.enroll('label', images)")
    labels, scores = zip(*ranking, strict=True)
    return Classification(label, scores[0], labels, scores, speed_ms)
