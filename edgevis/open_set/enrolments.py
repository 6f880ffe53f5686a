"""Enrolments drawn from a scene whose labels are known: some labels are enrolled, the others are strangers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from runtime.common.arrays import Array
from runtime.open_set.enrolled import Features, best_of_others, features_of, label_scores
from runtime.open_set.space import ScoreSpace

StrangersBy = Literal["other", "same", "any"]
"""The cameras that show strangers where there are several: others than the one that the labels are enrolled from; the
same, with whose background, light and point of view they look more like the enrolled; or all."""
STRANGERS_BY: StrangersBy = "other"
"""Unless something else is asked for."""

SIZES = (1, 2, 3, 5, 8, 10, 15, 20)
IMAGES = (1, 2, 3, 5, 8)
_MIN_STRANGERS = 4  # labels


def add_strangers_by(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--strangers-by``, see :data:`StrangersBy`."""
    parser.add_argument(
        "--strangers-by",
        choices=get_args(StrangersBy),
        default=STRANGERS_BY,
        help="the cameras that show strangers: others than that of the enrolment (default), the same, or any",
    )


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Images of one scene with their labels.

    Attributes:
        name: For reports.
        rows: (N, D) float32 unit rows as the model makes them.
        labels: (N,) int64.
        cameras: (N,) int64; labels are enrolled from one camera and asked for by the others. None where there is one.
        strangers_by: The cameras that show the strangers of an enrolment; without an effect where there is one.
    """

    name: str
    rows: Array
    labels: Array
    cameras: Array | None = None
    strangers_by: StrangersBy = STRANGERS_BY

    def only(self, labels: Array) -> Scene:
        """The scene restricted to these labels."""
        selected = np.isin(self.labels, labels)
        return replace(
            self,
            rows=self.rows[selected],
            labels=self.labels[selected],
            cameras=None if self.cameras is None else self.cameras[selected],
        )

    def projected(self, space: ScoreSpace | None) -> Scene:
        """The scene with its rows projected into a score space."""
        return self if space is None else replace(self, rows=space.project(self.rows))


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One enrolment.

    Attributes:
        labels, images: How many labels, with how many images each.
        features: What it says of itself.
        known: (Q,) the best score of each query whose label is enrolled.
        right: (Q,) bool: whether the best label was its own.
        strangers: (S,) the best score of each image of a label that is not enrolled.
    """

    labels: int
    images: int
    features: Features
    known: Array
    right: Array
    strangers: Array

    def fpir(self, threshold: float) -> float:
        """The share of strangers for whom a label comes back."""
        return float((self.strangers >= threshold).mean())

    def tpir(self, threshold: float) -> float:
        """The share of the enrolled who come back under their own label."""
        return float(((self.known >= threshold) & self.right).mean())

    def threshold(self, rate: float) -> float:
        """The lowest threshold at which no more than ``rate`` of the strangers are accepted."""
        ordered = np.sort(self.strangers)[::-1]
        allowed = int(np.floor(rate * len(ordered)))
        return float(np.nextafter(ordered[allowed], np.inf)) if allowed < len(ordered) else -1.0


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The images that an enrolment of a scene takes, by position.

    Attributes:
        enrolled: (L,) the labels.
        positions: (M,) the images that are enrolled, those of one label next to each other.
        counts: (L,) how many each label has.
        queries: (Q,) the other images of these labels, by the other cameras where there are several.
        strangers: (S,) positions of the images of the other labels, see :data:`StrangersBy`.
    """

    enrolled: Array
    positions: Array
    counts: Array
    queries: Array
    strangers: Array


def selections(scene: Scene, *, labels: int, images: int, count: int, seed: int) -> Iterator[Selection]:
    """Random enrolments of a scene; none if it has too few labels.

    Args:
        scene: With its labels and cameras.
        labels, images: The number of labels to enrol, and the most images of each.
        count: The number of enrolments.
        seed: The seed of the random choice.
    """
    known = np.unique(scene.labels)
    if len(known) - labels < _MIN_STRANGERS:
        return
    random = np.random.default_rng(seed)
    cameras = np.zeros(len(scene.labels), np.int64) if scene.cameras is None else scene.cameras
    for number in range(count):
        enrolled = random.permutation(known)[:labels]
        camera = np.unique(cameras)[number % len(np.unique(cameras))]
        chosen = []
        for label in enrolled:
            shuffled = random.permutation(np.flatnonzero((scene.labels == label) & (cameras == camera)))
            # With a single camera, at least half of the images remain as queries.
            most = len(shuffled) if scene.cameras is not None else len(shuffled) // 2
            chosen.append(shuffled[: min(images, most)])
        counts = np.array([len(item) for item in chosen])
        if not counts.all():
            continue
        positions = np.concatenate(chosen)
        left = np.ones(len(scene.labels), bool)
        left[positions] = False
        here = left & (cameras == camera)
        elsewhere = left if scene.cameras is None else left & (cameras != camera)
        strangers = {"other": elsewhere, "same": here, "any": left}[scene.strangers_by]
        own = np.isin(scene.labels, enrolled)
        yield Selection(enrolled, positions, counts, np.flatnonzero(elsewhere & own), np.flatnonzero(strangers & ~own))


def draws(
    scene: Scene, space: ScoreSpace | None, scoring: str, *, labels: int, images: int, count: int, seed: int
) -> Iterator[Drawn]:
    """The scores of :func:`selections`.

    Args:
        scene: With raw rows.
        space: Where they are scored; None for raw cosines.
        scoring: ``nearest``, ``prototype`` or ``blend``.
        labels, images, count, seed: See :func:`selections`.
    """
    projected = scene.projected(space)
    taken = np.zeros(len(projected.rows), np.float32) if space is None else space.offsets(projected.rows)
    for chosen in selections(scene, labels=labels, images=images, count=count, seed=seed):
        rows = projected.rows[chosen.positions]
        scores = label_scores(projected.rows[chosen.queries], rows, chosen.counts, scoring)
        others = label_scores(projected.rows[chosen.strangers], rows, chosen.counts, scoring)
        features = features_of(
            rows,
            chosen.counts,
            taken[chosen.positions],
            best_of_others(rows, chosen.counts, scoring),
            labels=labels,
            images=float(chosen.counts.mean()),
            scoring=scoring,
        )
        yield Drawn(
            labels,
            images,
            features,
            scores.max(axis=1) - taken[chosen.queries],
            chosen.enrolled[scores.argmax(axis=1)] == scene.labels[chosen.queries],
            others.max(axis=1) - taken[chosen.strangers],
        )


def all_draws(scene: Scene, space: ScoreSpace | None, scoring: str, *, count: int, seed: int) -> list[Drawn]:
    """Enrolments of every size that the scene has labels for."""
    drawn: list[Drawn] = []
    for labels in SIZES:
        for images in IMAGES:
            drawn += draws(
                scene, space, scoring, labels=labels, images=images, count=count, seed=seed + 100 * labels + images
            )
    return drawn
