"""Who has had each label before each camera: a label is one individual, also of two that are never seen together.

Objects before one camera share its background, light and viewpoint, and score higher against labels that were enrolled
there than a threshold from other scenes expects. But whoever the label belongs to scores higher still. So the views of
the object with the best score for a label are kept for each camera, and a track that is not that object – its views are
not alike – and scores less by a margin does not get the label. These embeddings are biometric data: they stay in the
memory of the process, a dozen for each label and camera, and are forgotten as unknowns are, and when what is enrolled
changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from runtime.gallery.embedded import EmbeddedGallery
from runtime.open_set.decision import OpenSet
from runtime.open_set.enrolled import label_scores
from runtime.results import Match
from runtime.tracking.evidence import Evidence
from runtime.tracking.identities import SAME_CAMERA, RowSpace, with_new_views
from runtime.tracking.records import TrackRecord

_RATE = 0.01  # of others that may be taken for the one who has a label (false matches of one comparison)


@dataclass(slots=True)
class _Holder:
    score: float
    track: int
    seen_s: float
    rows: list[npt.NDArray[np.float32]]


class Holders:
    """The objects that have had labels before the cameras of one pipeline.

    Args:
        model: With what is enrolled.
        margin: How far below the holder's score another object's may be.
        limit: The most that are remembered.
        forget_after_s: Seconds after which one that was not seen is forgotten.
    """

    def __init__(self, model: RowSpace, *, margin: float, limit: int, forget_after_s: float) -> None:
        self._gallery: EmbeddedGallery = model.gallery
        self._open_set: OpenSet = model.open_set
        self._margin, self._limit, self._forget_after_s = margin, limit, forget_after_s
        self._known: dict[tuple[str, int], _Holder] = {}
        self._version = self._gallery.version

    def __len__(self) -> int:
        return len(self._known)

    def refuses(self, match: Match, record: TrackRecord) -> bool:
        """Whether another object has had a label before this camera with a better score.

        Args:
            match: The label, and the mean score of the track's views for it.
            record: The track.
        """
        self._check_version()
        holder = self._known.get((match.label, record.camera))
        if holder is None or holder.track == record.number or match.score >= holder.score - self._margin:
            return False
        return not self._alike(holder, record.evidence)

    def learn(self, record: TrackRecord, now: float) -> None:
        """Note that a track has its label; its object becomes the holder unless another one had a better score.

        Args:
            record: The track, with its label.
            now: Seconds of a clock that all sources share.
        """
        self._check_version()
        label = cast(str, record.label)
        key, rows, score = (label, record.camera), record.evidence.rows, dict(record.matches)[label]
        holder = self._known.pop(key, None)
        alike = holder is None or holder.track == record.number or self._alike(holder, record.evidence)
        record.unlike_holder = not alike
        if holder is not None and alike:
            rows_kept = with_new_views(holder.rows, rows)
            holder = _Holder(max(score, holder.score), record.number, now, rows_kept)
        elif holder is None or score > holder.score:
            holder = _Holder(score, record.number, now, with_new_views([], rows))
        self._known[key] = holder  # the newest last
        while len(self._known) > self._limit:
            del self._known[next(iter(self._known))]

    def expire(self, now: float) -> None:
        """Forget whoever was not seen for long."""
        old = [key for key, holder in self._known.items() if now - holder.seen_s > self._forget_after_s]
        for key in old:
            del self._known[key]

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def _alike(self, holder: _Holder, evidence: Evidence) -> bool:
        """Whether a track's views show the holder. Where nothing is known of such scores, they do."""
        bound = self._open_set.verification_threshold(_RATE)
        if bound is None:
            return True
        rows = evidence.rows
        known = np.stack(holder.rows)
        scores = label_scores(rows, known, np.array([len(known)]), self._gallery.scoring)[:, 0]
        mean = float(evidence.weights @ (scores - self._open_set.offsets(rows)))
        return mean >= min(1.0, bound + SAME_CAMERA)

    def _check_version(self) -> None:
        """Forget all when what is enrolled has changed: the scores were of other images."""
        if self._gallery.version != self._version:
            self._known.clear()
            self._version = self._gallery.version
