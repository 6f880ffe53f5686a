"""One label for a track, from the scores of all its views."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.results import Match
from runtime.tracking.views import GOOD

MAX_VIEWS = 8
"""Views that a track remembers: older ones have less than a third of the newest one's weight."""
_DECAY = 0.85  # of a view's weight with each newer one
_HYSTERESIS = 0.03  # a label that is there stays until its score falls so far below the threshold
_SINGLE = 0.03  # what one view alone must exceed the threshold by


class Evidence:
    """The newest views of one track: (D,) float32 unit rows of the gallery's space, each with a weight."""

    def __init__(self) -> None:
        self._rows: deque[npt.NDArray[np.float32]] = deque(maxlen=MAX_VIEWS)
        self._weights: deque[float] = deque(maxlen=MAX_VIEWS)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def has_good_view(self) -> bool:
        """Whether one of the views is a good one."""
        return any(weight >= GOOD for weight in self._weights)

    @property
    def rows(self) -> npt.NDArray[np.float32]:
        """(V, D) float32, oldest first; only of good views once there is one."""
        least = GOOD if self.has_good_view else 0.0
        return np.stack([row for row, weight in zip(self._rows, self._weights, strict=True) if weight >= least])

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """(V,) the weights of :attr:`rows`; they add up to 1."""
        count = len(self.rows)
        decayed = _DECAY ** np.arange(count - 1, -1, -1.0)
        return np.asarray(decayed / decayed.sum())

    def add(self, row: Array, weight: float) -> None:
        """Take one more view."""
        self._rows.append(np.asarray(row, np.float32))
        self._weights.append(weight)

    def newest(self, count: int) -> Evidence:
        """The newest views alone."""
        chosen = Evidence()
        for row, weight in list(zip(self._rows, self._weights, strict=True))[-count:]:
            chosen.add(row, weight)
        return chosen

    def take_over(self, earlier: Evidence) -> None:
        """Put the views of an earlier track of the same object before these."""
        rows, weights = [*earlier._rows, *self._rows], [*earlier._weights, *self._weights]
        self._rows, self._weights = deque(rows, maxlen=MAX_VIEWS), deque(weights, maxlen=MAX_VIEWS)

    def mean_ranking(self, rankings: Sequence[Sequence[Match]]) -> tuple[Match, ...]:
        """The labels with their mean scores, best first.

        Args:
            rankings: The ranking of each of :attr:`rows`; a label that one of them lacks has at most its last score.
        """
        means: dict[str, float] = {match.label: 0.0 for ranking in rankings for match in ranking}
        for ranking, weight in zip(rankings, self.weights.tolist(), strict=True):
            scores = dict(ranking)
            least = ranking[-1].score if ranking else 0.0
            for label in means:
                means[label] += weight * scores.get(label, least)
        return tuple(sorted((Match(*item) for item in means.items()), key=lambda match: -match.score))


def decided_label(current: str | None, ranking: Sequence[Match], threshold: float | None, *, views: int) -> str | None:
    """The label that the mean scores speak for; None where they speak for nobody.

    A label must reach the threshold to come, and exceed it where only one view speaks for it. One that is there stays
    until it falls below the threshold by a margin, or another one leads by it: a label near the threshold does not
    flicker.

    Args:
        current: The label before this view.
        ranking: Mean scores, best first.
        threshold: The open-set threshold of a single view; None if every match counts.
        views: How many views the means are over.
    """
    if not ranking:
        return None
    bound = -np.inf if threshold is None else threshold
    best = ranking[0]
    standing = next((match.score for match in ranking if match.label == current), -np.inf)
    if current is not None and standing >= bound - _HYSTERESIS and best.score - standing < _HYSTERESIS:
        return current
    return best.label if best.score >= bound + (_SINGLE if views < 2 else 0.0) else None
