"""The exercise that a predictor runs on the pictures of ``answers.npz``, and its answers as arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from runtime import tasks
from runtime.common.arrays import Array
from runtime.images.decode import Image
from runtime.images.masks import Mask
from runtime.open_set.decision import OpenSetInfo
from runtime.open_set.strangers import Rate
from runtime.predictor import Predictor
from runtime.results import Detections, Ranking, Result, Segmentation
from runtime.results_instances import InstanceSegmentation
from runtime.verification.answers.file import AnswersHeader

RATES = (None, 0.01, 0.02, 0.05, 0.1, 0.2)
"""False-accept rates that an operating point is asked for; None is the bundle's own."""

_GRID = 4
"""Of probabilities every fourth row and column is kept."""


def answers_of(
    predictor: Predictor, header: AnswersHeader, pictures: Sequence[Image], masks: Sequence[Mask | None]
) -> dict[str, Array]:
    """Enrol some of the pictures and predict on others.

    Args:
        predictor: Nothing is enrolled in it yet; afterwards the pictures are.
        header: Which picture shows what, which are enrolled, and which are predicted on.
        pictures: Each (H, W, 3) uint8 BGR.
        masks: The masks of the enrolled pictures, where the task enrols with masks.

    Returns:
        For a task with scores between labels: ``embedding`` (pictures, D) float32 unit rows; ``operating`` (steps,
        rates, 7) float64, after each step of the enrolment and at each of :data:`RATES` the threshold and the expected
        FPIR and TPIR with their intervals, NaN where one is not known; ``scores`` (queries, labels) float64 in the
        order of enrolment; ``accepted`` (queries,) int32, the label that came back or -1. For segmentation, of each
        query ``labels/i`` (H, W) int16, the index of the label or -1, and ``probability/i``, float16 on a grid. For
        detection ``threshold`` (1,) float64, and of each query ``boxes/i`` (n, 4) float32 xyxy and ``detected/i``
        (n, 2) float64, score and class, from half of the threshold on; of instances ``polygons/i`` (n, V, 2) float32
        as well.

    Raises:
        EdgevisError: The predictor refuses a picture, or its engine fails.
    """
    queries = [pictures[index] for index in header.queries]
    if predictor.info.open_set is None:
        enrolment = tasks.load(predictor.info.task).TRAITS.enrolment
        for label, chosen in _by_label(header).items():
            marks = [mask for index in chosen if (mask := masks[index]) is not None]
            if chosen and (marks or enrolment == "images"):
                images = [pictures[index] for index in chosen]
                predictor.enroll(label, images, masks=marks if enrolment == "images and masks" else None)
        threshold = predictor.threshold
        if threshold is None or not issubclass(tasks.load(predictor.info.task).TRAITS.result, Detections):
            return _maps(predictor.predict(queries))
        predictor.threshold = threshold / 2  # what another engine scores a little lower is in its list, too
        try:
            return {"threshold": np.array([threshold]), **_lists(predictor.predict(queries))}
        finally:
            predictor.threshold = None
    answers = {"embedding": predictor.embed(list(pictures))}
    answers["operating"] = np.array([_operating_points(predictor) for _ in _enrolment(predictor, header, pictures)])
    labels = predictor.labels
    results = cast("list[Ranking]", predictor.predict(queries, top_k=len(labels)))  # as there are scores between labels
    rankings = [dict(result.ranking) for result in results]
    answers["scores"] = np.array([[ranking[label] for label in labels] for ranking in rankings], np.float64)
    accepted = [result.label for result in results]
    answers["accepted"] = np.array([-1 if label is None else labels.index(label) for label in accepted], np.int32)
    return answers


def _by_label(header: AnswersHeader) -> dict[str, list[int]]:
    """The enrolled pictures of each label."""
    chosen: dict[str, list[int]] = {}
    for index, (shows, enrolled) in enumerate(zip(header.shows, header.enrolled, strict=True)):
        if enrolled:
            chosen.setdefault(f"label {shows}", []).append(index)
    return chosen


def _enrolment(predictor: Predictor, header: AnswersHeader, pictures: Sequence[Image]) -> Iterator[None]:
    """Enrol step by step, as a threshold is estimated by what is enrolled: one label, one image of each, all images."""
    chosen = _by_label(header)
    for label, indices in chosen.items():
        predictor.enroll(label, pictures[indices[0]])
        if len(predictor.labels) in (1, len(chosen)):
            yield
    for label, indices in chosen.items():
        if indices[1:]:
            predictor.enroll(label, [pictures[index] for index in indices[1:]])
    yield


def _operating_points(predictor: Predictor) -> list[list[float]]:
    points = []
    for rate in RATES:
        predictor.false_accept_rate = rate
        points.append(_numbers(predictor.info.open_set))
    predictor.false_accept_rate = None
    return points


def _numbers(info: OpenSetInfo | None) -> list[float]:
    if info is None or info.threshold is None:
        return [math.nan] * 7
    return [info.threshold, *_interval(info.expected_fpir), *_interval(info.expected_tpir)]


def _interval(rate: Rate | None) -> tuple[float, float, float]:
    return (math.nan,) * 3 if rate is None else (rate.value, rate.low, rate.high)


def _maps(results: Sequence[Result]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for index, result in enumerate(results):
        if not isinstance(result, Segmentation):  # of another package's task only preprocessing is compared
            continue
        arrays[f"labels/{index}"] = result.label_map
        arrays[f"probability/{index}"] = result.probability[::_GRID, ::_GRID].astype(np.float16)
    return arrays


def _lists(results: Sequence[Result]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for index, result in enumerate(cast("list[Detections]", results)):
        arrays[f"boxes/{index}"] = result.boxes_xyxy
        arrays[f"detected/{index}"] = np.stack([result.scores, result.class_ids], axis=1, dtype=np.float64)
        if isinstance(result, InstanceSegmentation):
            arrays[f"polygons/{index}"] = result.polygons
    return arrays
