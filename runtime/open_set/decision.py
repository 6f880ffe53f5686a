"""The open-set decision of one predictor: its present threshold, the threshold's origin, and the expected rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runtime.common.arrays import Array
from runtime.errors import InputError
from runtime.gallery.adapted import AdaptedGallery
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.state import GalleryState
from runtime.gallery.tracking import BestScores
from runtime.open_set.enrolled import SAMPLE_ROWS, Features, best_of_others, features_of, features_of_adapted
from runtime.open_set.generic import generic
from runtime.open_set.space import ScoreSpace
from runtime.open_set.statistics import OpenSetStatistics
from runtime.open_set.strangers import (
    MAX_RATE,
    MAX_STRANGERS,
    MIN_RATE,
    MIN_STRANGERS,
    Rate,
    effective_count,
    rate_interval,
    threshold_at,
)

DEFAULT_RATE = 0.07
"""FPIR of the default operating point: on each scene measured the estimate then came to between 1 and 15 %."""

Method = Literal["by hand", "calibrated", "estimated", "generic", "none"]

_LARGE_SAMPLE = 128  # rows that stand for an enrolment that is not looked at as a whole
_PER_LABEL = 8  # of the rows of each of its labels
_GROWTH = 1.25  # of a large enrolment before its statistics are taken again
_BELOW = 1e-4  # the threshold stays so far below what is enrolled, whose own score has rounding errors
_BY_CHANCE = 0.01  # of strangers, who may look like somebody enrolled
_ALIKE = 0.98  # labels whose images reach such scores against each other cannot be told apart


@dataclass(frozen=True, slots=True)
class OpenSetInfo:
    """The open-set operating point: the target rate, the expected rates, and the method behind them.

    Attributes:
        threshold: The score from which a match counts, -1..1; None when nothing is enrolled or known.
        method: ``calibrated`` on strangers of this scene; ``estimated`` from what is enrolled and what was measured of
            these weights on other scenes; ``generic``: estimated without measurements of these weights;
            ``by hand``; ``none``: every match counts.
        calibrated: Whether strangers of this scene were seen.
        false_accept_rate: The FPIR that is asked: the share of strangers for whom any label may come back.
        expected_fpir: The expected FPIR with its 95 % interval; None where nothing is known.
        expected_tpir: The share of the enrolled expected under their own label, with its interval.
        strangers: The number of images of strangers that were measured.
        distinct_strangers: The number of different strangers that they seem to show.
        note: The reliability of the figures and how to improve it, in a sentence.
    """

    threshold: float | None
    method: Method
    calibrated: bool
    false_accept_rate: float
    expected_fpir: Rate | None
    expected_tpir: Rate | None
    strangers: int
    distinct_strangers: int
    note: str


class OpenSet:
    """Decides from which score a match of a gallery counts. Threads may query it while another one enrols.

    Args:
        gallery: The enrolled rows, in ``space``.
        space: The score space; None for raw cosines.
        statistics: The statistics of the model's weights; None where there are none.
        rate: The FPIR to keep to unless another one is set.
    """

    def __init__(
        self,
        gallery: EmbeddedGallery,
        space: ScoreSpace | None,
        statistics: OpenSetStatistics | None,
        *,
        rate: float = DEFAULT_RATE,
    ) -> None:
        self._gallery = gallery
        self._space = space
        self._statistics = statistics
        self._known = statistics or generic(gallery.scoring)
        self._default_rate = rate
        self._rate: float | None = None
        self._by_hand: float | None = None
        self._strangers: _Strangers | None = None
        self._features: tuple[int, int, Features] | None = None  # version, rows, what they say
        self._fitted: tuple[tuple[object, ...], float | None] | None = None

    @property
    def space_digest(self) -> str:
        """The digest of the score space; empty for raw embeddings."""
        return "" if self._space is None else self._space.digest

    def project(self, embeddings: Array) -> Array:
        """Project the model's (N, D) float32 unit rows to the gallery's space."""
        return embeddings if self._space is None else self._space.project(embeddings)

    def offsets(self, rows: Array) -> Array:
        """(N,) float32: the offset subtracted from the scores of each of (N, D) rows of the space."""
        return np.zeros(len(rows), np.float32) if self._space is None else self._space.offsets(rows)

    def camera_coordinates(self, rows: Array) -> Array:
        """(N, K): see :meth:`runtime.open_set.space.ScoreSpace.camera_coordinates`; without a space, the rows."""
        return rows if self._space is None else self._space.camera_coordinates(rows)

    @property
    def rate(self) -> float:
        """The target FPIR per query, for any number of labels."""
        return self._default_rate if self._rate is None else self._rate

    def set_rate(self, rate: float | None) -> None:
        """Set the target FPIR; None restores the model's."""
        self._rate = None if rate is None else checked_rate(rate)

    @property
    def own_rate(self) -> float | None:
        """The FPIR that was set; None for the model's default."""
        return self._rate

    @property
    def by_hand(self) -> float | None:
        """The threshold that was set by hand; None if it is fitted."""
        return self._by_hand

    def set_by_hand(self, value: float | None) -> None:
        """Set the threshold, -1..1; None to have it fitted again."""
        self._by_hand = value

    @property
    def strangers(self) -> Array | None:
        """The calibration's (S, D) float32 rows of the space; None without a calibration."""
        return None if self._strangers is None else self._strangers.rows

    def calibrate(self, rows: Array | None) -> None:
        """Measure the threshold on strangers.

        Args:
            rows: (S, D) float32 unit rows of the space, at least :data:`MIN_STRANGERS`; None forgets the calibration.

        Raises:
            InputError: They are too few, or not unit rows.
        """
        if rows is None:
            self._strangers = None
            return
        if len(rows) < MIN_STRANGERS:
            raise InputError(
                f"{len(rows)} images of strangers; at least {MIN_STRANGERS} are needed, 100 for a rate of 1 %: "
                "a minute of the camera's own video with nobody enrolled in it will do"
            )
        if rows.shape[1] != self._gallery.dimension:
            raise InputError(f"strangers of shape {rows.shape}; this model's rows are (S, {self._gallery.dimension})")
        if len(rows) > MAX_STRANGERS:
            rows = rows[np.linspace(0, len(rows) - 1, MAX_STRANGERS).round().astype(np.intp)]
        if not np.allclose(np.einsum("nd,nd->n", rows, rows), 1.0, atol=1e-3):
            raise InputError("an image of the strangers has no embedding (all zero or not finite): leave it out")
        same = self._known.same
        self._strangers = _Strangers(self._gallery, np.array(rows, np.float32), self.offsets(rows), same)

    @property
    def threshold(self) -> float | None:
        """The score from which a match counts, -1..1; None if every match counts."""
        if self._by_hand is not None:
            return self._by_hand
        strangers = self._strangers
        key = (self._gallery.version, self.rate, strangers)
        known = self._fitted
        if known is None or known[0] != key:
            known = self._fitted = (key, self._fit(strangers))
        return known[1]

    def verification_threshold(self, rate: float) -> float | None:
        """The score from which an image and one label are taken for the same at a false match rate (1:1 comparison).

        By what was measured of the weights, whatever is enrolled, calibrated or set by hand; None if nothing is known.
        """
        return self._known.threshold(Features.of_one_label(), rate)

    @property
    def info(self) -> OpenSetInfo:
        """The operating point and its expected rates."""
        threshold, strangers, rate = self.threshold, self._strangers, self.rate
        count = len(strangers.rows) if strangers else 0
        distinct = strangers.distinct if strangers else 0
        features = self.features()
        method: Method
        fpir = tpir = None
        if self._by_hand is not None:
            method, note = "by hand", "a threshold set by hand promises no rate; set it to None to have it fitted"
            if strangers and features:
                reached = float((strangers.scores() >= self._by_hand).mean())
                fpir = rate_interval(reached, strangers.effective)
        elif threshold is None or features is None:
            method, note = "none", "nothing is enrolled, or nothing is known of strangers yet: every match counts"
        elif strangers:
            method = "calibrated"
            fpir = rate_interval(rate, strangers.effective)
            worth = f"{strangers.effective:.0f} independent ones"
            note = f"measured on {count} images of strangers of this scene, worth {worth}"
            if alike := self._like_enrolled(strangers, features):
                note += (
                    f"; {alike} of them score as high as the images of a label do: is somebody enrolled among them? "
                    "Leave those out"
                )
        else:
            method = "estimated" if self._statistics else "generic"
            rates = self._known.expected(features.labels, features.images, rate)
            fpir, tpir = rates if rates is not None else (None, None)
            note = (
                "the rate is an estimate: no stranger of this scene was seen. Measure it: "
                "predictor.calibrate(images_of_strangers), or edgevis calibrate"
            )
            if not self._statistics:
                note = "nothing was measured of these weights, so " + note
        if features and features.closest is not None and features.closest >= _ALIKE:
            note += (
                f"; images of different labels reach a score of {features.closest:.3f} against each other: those "
                "labels cannot be told apart, remove one of them or enrol other images"
            )
        if tpir is None and threshold is not None and features is not None:
            rates = self._known.expected(features.labels, features.images, rate)
            tpir = rates[1] if rates is not None else None
        return OpenSetInfo(threshold, method, strangers is not None, rate, fpir, tpir, count, distinct, note)

    @staticmethod
    def _like_enrolled(strangers: _Strangers, features: Features) -> int:
        """How many strangers score like images of the labels themselves; 0 where it is no more than chance."""
        own = _ALIKE if features.genuine_low is None else features.genuine_low
        alike = int((strangers.scores() >= own).sum())
        return alike if alike > _BY_CHANCE * len(strangers.rows) else 0

    def features(self) -> Features | None:
        """The features of the enrolment; None when nothing is enrolled."""
        state = self._gallery.state
        if not state.label_count:
            return None
        known = self._features
        if known is not None:
            version, rows, features = known
            large = state.row_count > SAMPLE_ROWS
            if version == state.version or (large and rows / _GROWTH <= state.row_count <= rows * _GROWTH):
                return features
        features = self._features_of(state)
        self._features = (state.version, state.row_count, features)
        return features

    def _fit(self, strangers: _Strangers | None) -> float | None:
        if not self._gallery.label_count:
            return None
        if strangers is not None:  # what is enrolled need not be looked at
            return float(np.clip(strangers.threshold(self.rate), -1.0, 1.0))
        features = self.features()
        if features is None:
            return None
        estimated = self._known.threshold(features, self.rate)
        if estimated is None:
            return None
        # Labels that look alike draw the estimate towards their own scores; each must still be recognised.
        return float(np.clip(min(estimated, features.recognised - _BELOW), -1.0, 1.0))

    def _features_of(self, state: GalleryState) -> Features:
        if isinstance(self._gallery, AdaptedGallery):
            return features_of_adapted(self._gallery)
        whole = state.row_count <= SAMPLE_ROWS
        if whole:
            slots = state.live_slots
        else:
            picked = np.linspace(0, state.label_count - 1, min(state.label_count, _LARGE_SAMPLE)).round()
            slots = state.live_slots[np.unique(picked.astype(np.intp))]
        selected = np.zeros(state.slot_count + 1, bool)
        selected[slots] = True
        positions = np.flatnonzero(selected[state.slots])
        order = np.argsort(state.slots[positions], kind="stable")
        rows = state.rows_at(positions)[order]
        counts = np.bincount(np.searchsorted(slots, state.slots[positions]), minlength=len(slots))
        if whole:
            others = best_of_others(rows, counts, state.scoring)
        else:
            # A label with many rows is represented by its first ones; its neighbours are searched among all rows.
            keep = np.concatenate([np.arange(count) < _PER_LABEL for count in counts.tolist()])
            rows, counts = rows[keep], np.minimum(counts, _PER_LABEL)
            others = self._others_searched(state, rows, np.repeat(slots, counts))
        return features_of(
            rows,
            counts,
            self.offsets(rows),
            others,
            labels=state.label_count,
            images=state.row_count / state.label_count,
            scoring=state.scoring,
        )

    def _others_searched(self, state: GalleryState, rows: Array, owners: Array) -> Array:
        picked = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _LARGE_SAMPLE)).round().astype(np.intp))
        others = np.full(len(rows), -np.inf, np.float32)
        names = state.epoch.names
        for index, matches in zip(picked.tolist(), self._gallery.search(rows[picked], 2), strict=True):
            own_label = names[owners[index]]
            others[index] = next((match.score for match in matches if match.label != own_label), -math.inf)
        return others


class _Strangers:
    """The strangers of a calibration, and their best scores against the present labels."""

    def __init__(self, gallery: EmbeddedGallery, rows: Array, offsets: Array, same: float) -> None:
        self.rows = rows
        self._offsets = offsets
        self._best: BestScores = gallery.best_scores(rows)
        self.effective, self.distinct = effective_count(rows, same)

    def threshold(self, rate: float) -> float:
        """The score that a stranger reaches with probability ``rate``.

        Images of one stranger are neither independent nor the same. Counted as all independent, 1 % came to 1 to 8 %
        and 5 % to 5 to 13 % on persons and classes of the development data; counted as one each, 5 % came to 2 %. In
        between, with two thirds of the weight on the images, 1 % came to 0.6 to 3 % (once 6 %) and 5 % to 5 to 8 %
        (once 12 %), most of it near the lower ends.
        """
        scores = self.scores()
        return threshold_at(scores, rate, independent=(len(scores) ** 2 * self.effective) ** (1 / 3))

    def scores(self) -> Array:
        """(S,) each stranger's best score."""
        return np.asarray(np.clip(self._best.update().scores - self._offsets, -1.0, 1.0))


def checked_rate(rate: object) -> float:
    """Check a false-accept rate; InputError when it is invalid."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"false_accept_rate is {rate!r}; allowed: {MIN_RATE} to {MAX_RATE}, such as 0.01 for 1 %")
    return float(rate)
