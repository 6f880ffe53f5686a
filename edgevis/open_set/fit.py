"""Fits threshold models: they predict an enrolment's threshold from its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgevis.open_set.enrolments import Drawn, Scene, all_draws, draws
from edgevis.open_set.space import space_of
from runtime.common.arrays import Array
from runtime.gallery.state import Scoring
from runtime.open_set.enrolled import FEATURES
from runtime.open_set.space import ScoreSpace
from runtime.open_set.statistics import HeldOutRates, OpenSetStatistics, ThresholdModel

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
_LEVELS = (FEATURES, FEATURES[:3], FEATURES[:1])
"""What is known of an enrolment: all; of labels with one image each; of a single label."""

_RIDGE = 1e-2
_FIT_DRAWS, _MEASURE_DRAWS = 12, 40
_MEASURED_SIZES = ((1, 5), (2, 1), (2, 5), (5, 1), (5, 5), (10, 5), (10, 8))
_SHRINK = (0.1, 0.2, 0.35, 0.5, 0.7)
_NEIGHBOURS = (5, 10, 20)
_STRENGTH = (0.0, 0.5, 0.75, 1.0)
_CHOICE_DRAWS = 10


def choose_space(
    background: Array, owners: Array, scenes: Sequence[Scene], scoring: Scoring, *, whiten: bool
) -> ScoreSpace:
    """The space with the highest TPIR at FPIR 1 % and 5 % over the scenes, each beside its own raw scores."""
    best: tuple[float, ScoreSpace] | None = None
    for shrink in _SHRINK if whiten else (None,):
        for neighbours in _NEIGHBOURS:
            base = space_of(background, owners, shrink=shrink, neighbours=neighbours, strength=1.0)
            for strength in _STRENGTH:
                space = ScoreSpace(base.mean, base.whitening, base.cohort, neighbours, strength, base.level)
                value = float(np.mean([_merit(scene, space, scoring) for scene in scenes]))
                if best is None or value > best[0]:
                    best = value, space
    assert best is not None  # noqa: S101 - the grids are not empty
    return best[1]


def _merit(scene: Scene, space: ScoreSpace, scoring: Scoring) -> float:
    labels = min(10, len(np.unique(scene.labels)) // 2)
    values = []
    for images in (3, 8):
        for item in draws(scene, space, scoring, labels=labels, images=images, count=_CHOICE_DRAWS, seed=7):
            values += [np.log(item.tpir(item.threshold(rate)) + 0.05) for rate in (0.01, 0.05)]
    return float(np.mean(values))


def fit(
    scenes: Sequence[Scene], space: ScoreSpace | None, scoring: Scoring, *, same: float, source: str, seed: int = 0
) -> OpenSetStatistics:
    """The runtime's open-set data: threshold models over all labels of the scenes, and measured rates.

    The measured rates are of the labels that a fit has not seen: the labels of each scene are halved, models of one
    half are measured on the other, and the other way round.
    """
    whole = {scene.name: all_draws(scene, space, scoring, count=_FIT_DRAWS, seed=seed) for scene in scenes}
    measured: list[tuple[Drawn, OpenSetStatistics]] = []
    for half in (0, 1):
        parts = [_halved(scene, seed) for scene in scenes]
        fitted = {
            scene.name: all_draws(part[half], space, scoring, count=_FIT_DRAWS, seed=seed + 1)
            for scene, part in zip(scenes, parts, strict=True)
        }
        statistics = OpenSetStatistics(scoring, RATES, _models(fitted), (), same, source)
        for part in parts:
            for labels, images in _MEASURED_SIZES:
                measured += [
                    (item, statistics)
                    for item in draws(
                        part[1 - half],
                        space,
                        scoring,
                        labels=labels,
                        images=images,
                        count=_MEASURE_DRAWS,
                        seed=seed + 17 * labels + images,
                    )
                ]
    return OpenSetStatistics(scoring, RATES, _models(whole), _measured(measured), same, source)


def same_cosine(scenes: Sequence[Scene], space: ScoreSpace | None) -> float:
    """The cosine at which as many pairs of one label lie below as pairs of different labels above."""
    at = []
    for scene in scenes:
        rows = scene.projected(space).rows
        cosines = rows @ rows.T
        upper = np.triu_indices(len(rows), k=1)
        equal = (scene.labels[:, None] == scene.labels)[upper]
        if scene.cameras is not None:  # strangers are counted by one camera
            near = (scene.cameras[:, None] == scene.cameras)[upper]
            genuine, impostor = cosines[upper][equal & near], cosines[upper][~equal & near]
        else:
            genuine, impostor = cosines[upper][equal], cosines[upper][~equal]
        grid = np.linspace(-1, 1, 401)
        misses = np.searchsorted(np.sort(genuine), grid) / len(genuine)
        alarms = 1 - np.searchsorted(np.sort(impostor), grid) / len(impostor)
        at.append(grid[np.argmin(np.abs(misses - alarms))])
    return float(np.mean(at))


def _halved(scene: Scene, seed: int) -> tuple[Scene, Scene]:
    labels = np.random.default_rng(seed + 5).permutation(np.unique(scene.labels))
    middle = len(labels) // 2
    return scene.only(labels[:middle]), scene.only(labels[middle:])


def _models(by_scene: Mapping[str, Sequence[Drawn]]) -> tuple[ThresholdModel, ...]:
    return tuple(_model(by_scene, features) for features in _LEVELS)


def _model(by_scene: Mapping[str, Sequence[Drawn]], features: tuple[str, ...]) -> ThresholdModel:
    """Least squares of the threshold that is right in each enrolment, each scene with the same weight; then moved so
    that the mean FPIR over the enrolments is the one that was asked.
    """
    usable: list[Drawn] = []
    weights: list[float] = []
    for items in by_scene.values():
        complete = [item for item in items if all(item.features.value(name) is not None for name in features)]
        usable += complete
        weights += [1.0 / max(len(complete), 1)] * len(complete)
    table = np.array([[item.features.value(name) for name in features] for item in usable], np.float64)
    weight = np.sqrt(np.array(weights) / np.sum(weights))
    centre, scale = table.mean(axis=0), table.std(axis=0) + 1e-9
    design = np.hstack([np.ones((len(table), 1)), (table - centre) / scale])
    ridge = _RIDGE * np.eye(design.shape[1])
    ridge[0, 0] = 0.0
    rows = []
    for rate in RATES:
        target = np.array([item.threshold(rate) for item in usable])
        weighted = design * weight[:, None]
        solved = np.linalg.solve(weighted.T @ weighted + ridge, weighted.T @ (target * weight))
        predicted = design @ solved
        shift = _shift(usable, predicted, np.array(weights), rate)
        slopes = solved[1:] / scale
        rows.append((float(solved[0] + shift - slopes @ centre), *(float(value) for value in slopes)))
    return ThresholdModel(
        features,
        tuple(rows),
        tuple(float(value) for value in np.quantile(table, 0.02, axis=0)),
        tuple(float(value) for value in np.quantile(table, 0.98, axis=0)),
    )


def _shift(items: Sequence[Drawn], thresholds: Array, weights: Array, rate: float) -> float:
    low, high = -0.5, 0.5
    share = weights / weights.sum()
    for _ in range(30):
        middle = (low + high) / 2
        rates = [item.fpir(float(at) + middle) for item, at in zip(items, thresholds, strict=True)]
        if float(share @ rates) > rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _measured(items: Sequence[tuple[Drawn, OpenSetStatistics]]) -> tuple[HeldOutRates, ...]:
    rates = []
    for labels, images in _MEASURED_SIZES:
        matching = [pair for pair in items if (pair[0].labels, pair[0].images) == (labels, images)]
        if not matching:
            continue
        for rate in RATES:
            at = [statistics.threshold(item.features, rate) for item, statistics in matching]
            pairs = [(item, value) for (item, _), value in zip(matching, at, strict=True) if value is not None]
            fpir = np.array([item.fpir(value) for item, value in pairs])
            tpir = np.array([item.tpir(value) for item, value in pairs])
            rates.append(HeldOutRates(labels, images, rate, *_summary(fpir), *_summary(tpir)))
    return tuple(rates)


def _summary(values: Array) -> tuple[float, float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return tuple(round(float(value), 4) for value in (values.mean(), low, high))  # type: ignore[return-value]
