"""The statistics of an enrolment: each image serves as a stranger to other labels and as a query of its own label."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from runtime.common.arrays import Array, unit_rows
from runtime.gallery.adapted import AdaptedGallery

FEATURES = ("log_labels", "stranger_mean", "stranger_high", "genuine_median", "genuine_low")

SAMPLE_ROWS = 512
"""The number of rows that represent a larger enrolment; a statistic needs no more, and its cost stays bounded."""


@dataclass(frozen=True, slots=True)
class Features:
    """The statistics of an enrolment; scores have their offsets subtracted, as a query's have.

    Attributes:
        labels: The number of labels.
        images: Images per label, the mean.
        stranger_mean, stranger_high: Mean and 90 % quantile of the best scores that images reach against the labels
            but their own; None with one label.
        genuine_median, genuine_low: Median and 20 % quantile of the scores of images against their own label without
            them; None where no label has two images.
        recognised: The highest threshold at which each label still recognises the best of its own images.
        closest: The highest cosine, nothing taken off, of an image to a label that is not its own; None with one label.
    """

    labels: int
    images: float
    stranger_mean: float | None
    stranger_high: float | None
    genuine_median: float | None
    genuine_low: float | None
    recognised: float
    closest: float | None

    @classmethod
    def of_one_label(cls) -> Features:
        """One label with one image, of which nothing else is known."""
        return cls(1, 1.0, None, None, None, None, 1.0, None)

    def value(self, name: str) -> float | None:
        """The value of one of :data:`FEATURES`; None if the enrolment is too small for it."""
        if name == "log_labels":
            return math.log(self.labels)
        feature: float | None = getattr(self, name)
        return feature


def label_scores(queries: Array, rows: Array, counts: Array, scoring: str) -> Array:
    """(N, L) float32 cosines of (N, D) queries with labels.

    Args:
        queries: Unit rows.
        rows: (M, D) unit rows, those of one label next to each other.
        counts: (L,) how many each label has.
        scoring: ``nearest``, ``prototype`` or ``blend``.
    """
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    nearest = prototype = np.zeros((len(queries), len(counts)), np.float32)
    if scoring != "prototype":
        nearest = np.maximum.reduceat(queries @ rows.T, starts, axis=1)
    if scoring != "nearest":
        prototype = queries @ unit_rows(np.add.reduceat(rows, starts, axis=0, dtype=np.float64)).T
    return _combined(nearest, prototype, scoring)


def best_of_others(rows: Array, counts: Array, scoring: str) -> Array:
    """(M,) the best cosine of each row to a label that is not its own; -inf with one label."""
    scores = np.array(label_scores(rows, rows, counts, scoring))
    scores[np.arange(len(rows)), np.repeat(np.arange(len(counts)), counts)] = -np.inf
    return np.asarray(scores.max(axis=1))


def features_of(
    rows: Array, counts: Array, offsets: Array, others: Array, *, labels: int, images: float, scoring: str
) -> Features:
    """The features of an enrolment, of all its labels or of a sample of them.

    Args:
        rows: (M, D) float32 rows, those of one label next to each other.
        counts: (L,) how many each label has.
        offsets: (M,) what is taken off each row's scores as a query.
        others: (M,) each row's best cosine to a label that is not its own; -inf where there is none.
        labels, images: The numbers of the whole enrolment.
        scoring: ``nearest``, ``prototype`` or ``blend``.
    """
    genuine, recognised = [], []
    start = 0
    for count in counts.tolist():
        label_rows = rows[start : start + count]
        cosines = label_rows @ label_rows.T
        taken = offsets[start : start + count]
        prototype = unit_rows(label_rows.mean(axis=0, keepdims=True))[0]
        recognised.append(float((_combined(np.ones(count, np.float32), label_rows @ prototype, scoring) - taken).max()))
        if count > 1:
            rest = cosines - np.diag(np.full(count, np.inf, np.float32))
            # The sum of the others times the row, over the length of that sum.
            total = cosines.sum()
            sums = cosines.sum(axis=1) - 1.0
            lengths = np.sqrt(np.maximum(total - 2.0 * cosines.sum(axis=1) + 1.0, 1e-12))
            genuine.append(_combined(rest.max(axis=1), sums / lengths, scoring) - taken)
        start += count
    flat = np.concatenate(genuine) if genuine else np.empty(0)
    return _summary(flat, others, offsets, labels=labels, images=images, recognised=min(recognised))


def features_of_adapted(gallery: AdaptedGallery) -> Features:
    """The features of an enrolment of one label or more, scored by adapted prototypes."""
    rows, prototypes = gallery.prototypes()
    owners = np.repeat(np.arange(len(rows)), rows.counts)
    first = rows.ends - rows.counts  # of each label, so that a sample has one of every label
    picked = np.linspace(0, len(owners) - 1, min(len(owners), SAMPLE_ROWS)).round().astype(np.intp)
    picked = np.union1d(picked, first)
    scores = unit_rows(rows.matrix[picked]) @ prototypes.T
    places = np.arange(len(picked)), owners[picked]
    recognised = np.full(len(rows), -np.inf)
    np.maximum.at(recognised, owners[picked], scores[places])
    scores[places] = -np.inf
    others = scores.max(axis=1)
    images = len(owners) / len(rows)
    genuine, none = gallery.genuine_scores(), np.zeros(len(picked))
    return _summary(genuine, others, none, labels=len(rows), images=images, recognised=float(recognised.min()))


def _summary(
    genuine: Array, others: Array, offsets: Array, *, labels: int, images: float, recognised: float
) -> Features:
    """The features, from images' scores against their own labels without them and, before offsets, against others."""
    strangers = (others - offsets)[np.isfinite(others)]
    return Features(
        labels,
        images,
        float(strangers.mean()) if len(strangers) else None,
        float(np.quantile(strangers, 0.9)) if len(strangers) else None,
        float(np.median(genuine)) if len(genuine) else None,
        float(np.quantile(genuine, 0.2)) if len(genuine) else None,
        recognised,
        float(others.max()) if np.isfinite(others).any() else None,
    )


def _combined(nearest: Array, prototype: Array, scoring: str) -> Array:
    """A label's score from the cosine to its closest row and that to its prototype."""
    if scoring == "nearest":
        return nearest
    return prototype if scoring == "prototype" else np.asarray(0.5 * (nearest + prototype))
