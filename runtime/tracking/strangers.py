"""The views of a stream's tracks as strangers, on whom an open-set threshold is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np

from runtime.common.arrays import Array
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.open_set.strangers import sampled_rows
from runtime.streams.frame import Frame
from runtime.tracking.objects import TrackedObject, crop_of, weights_in
from runtime.tracking.views import GOOD

_EVERY = 5  # frames: those between show the same


def stranger_rows(
    stream: Iterable[tuple[Frame, tuple[TrackedObject, ...]]],
    scored_rows: Callable[[Sequence[Image]], Array],
    *,
    without: Collection[int],
) -> Array:
    """(S, D) float32 rows of what tracks show in every fifth frame; of a track that has whole views, of those.

    Args:
        stream: The frames, each with its objects; no picture is kept.
        scored_rows: Makes (N, D) float32 unit rows of the score space of N crops.
        without: Numbers of tracks that are left out.

    Raises:
        InputError: There was no such track.
    """
    tracks: set[int] = set()

    def views() -> Iterator[tuple[tuple[int, bool], Image]]:
        """The number of a track, whether it is seen whole, and its crop."""
        for frame, objects in stream:
            tracks.update(item.track for item in objects)
            if frame.index % _EVERY:
                continue
            for item, weight in zip(objects, weights_in(frame.image, objects), strict=True):
                if item.detected and weight > 0:
                    yield (item.track, bool(weight >= GOOD)), crop_of(frame.image, item)

    known, rows = sampled_rows(views(), scored_rows)
    if unknown := sorted(set(without) - tracks):
        shown = ", ".join(map(str, sorted(tracks))) or "none"
        raise InputError(f"there is no track {unknown[0]} to leave out; the tracks of this source: {shown}")
    whole = {track for track, good in known if good}
    taken = [track not in without and (good or track not in whole) for track, good in known]
    return np.asarray(rows[np.array(taken, bool)])
