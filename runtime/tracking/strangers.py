"""The views of a stream's tracks as strangers, on whom an open-set threshold is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.open_set.strangers import MAX_STRANGERS
from runtime.streams.frame import Frame
from runtime.tracking.objects import TrackedObject, crop_of, weights_in
from runtime.tracking.views import GOOD

_BATCH = 32  # crops in memory at once
_EVERY = 5  # frames: those between show the same


class StrangerViews:
    """Collects the views by which a pipeline would decide for tracks, as rows; no picture is kept.

    Args:
        scored_rows: Makes (N, D) float32 unit rows of the score space of N crops.
    """

    def __init__(self, scored_rows: Callable[[Sequence[Image]], Array]) -> None:
        self._scored_rows = scored_rows
        self._waiting: list[tuple[int, bool, Image]] = []
        self._views: list[tuple[int, bool, npt.NDArray[np.float32]]] = []  # track, whether whole, row
        self._tracks: set[int] = set()
        self._stride = 1
        self._count = 0

    def add(self, frame: Frame, objects: Sequence[TrackedObject]) -> None:
        """Take the views of what is detected in a frame, of every fifth one."""
        self._tracks.update(item.track for item in objects)
        if frame.index % _EVERY:
            return
        for item, weight in zip(objects, weights_in(frame.image, objects), strict=True):
            if item.detected and weight > 0:
                if self._count % self._stride == 0:
                    self._waiting.append((item.track, bool(weight >= GOOD), crop_of(frame.image, item)))
                self._count += 1
        if len(self._waiting) >= _BATCH:
            self._embed()
        if len(self._views) >= 2 * MAX_STRANGERS:
            self._views, self._stride = self._views[::2], 2 * self._stride

    def rows(self, *, without: Collection[int] = ()) -> npt.NDArray[np.float32]:
        """(S, D) float32 rows of the tracks but these; of a track that has whole views, only those.

        Raises:
            InputError: There was no such track.
        """
        if unknown := sorted(set(without) - self._tracks):
            shown = ", ".join(map(str, sorted(self._tracks))) or "none"
            raise InputError(f"there is no track {unknown[0]} to leave out; the tracks of this source: {shown}")
        self._embed()
        whole = {track for track, good, _ in self._views if good}
        rows = [row for track, good, row in self._views if track not in without and (good or track not in whole)]
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    def _embed(self) -> None:
        if self._waiting:
            rows = self._scored_rows([crop for _, _, crop in self._waiting])
            views = zip(self._waiting, rows, strict=True)
            self._views += [(track, good, np.asarray(row, np.float32)) for (track, good, _), row in views]
            self._waiting = []
