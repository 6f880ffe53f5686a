"""The crops of one track of a video, for `edgevis enroll --from-track`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from edgevis import InputError, Pipeline, Predictor, TrackedObject
from runtime.images.decode import Image
from runtime.streams.sources import source_spec
from runtime.tracking.views import GOOD, view_weights

_CROPS = 12
"""Crops that a label is enrolled with."""


def crops_of_track(detector: str | None, predictor: Predictor, source: str, track: str) -> list[Image]:
    """Up to a dozen views of a track, whole ones where there are any, spread over its time.

    Args:
        detector: The detector's bundle; None for the one that comes along.
        predictor: The model that identifies, with what is enrolled, as `edgevis watch` would have it.
        source: The video.
        track: The track's number, or its identity such as ``unknown-7``.

    Raises:
        InputError: No such track, or the source has no end.
        SourceError: There is no such file.
    """
    spec = source_spec(source)
    if spec.kind in ("camera", "address"):
        raise InputError(
            f"--from-track takes a recorded video, and {spec.name} may have no end; record it: watch --save"
        )
    if not re.fullmatch(r"[0-9]+|[^\W\d].*", track):
        raise InputError(f"--from-track is {track!r}; allowed: the number of a track, or its name such as unknown-7")
    views: list[tuple[float, Image]] = []
    seen: dict[int, str] = {}
    with Pipeline(detector, predictor) as pipeline:
        for frame, objects in pipeline.stream(source, drop="none"):
            seen.update({item.track: item.identity for item in objects})
            weights = _weights(objects, frame.image.shape[:2])
            for item, weight in zip(objects, weights, strict=True):
                if track in (str(item.track), item.identity) and item.detected and weight > 0:
                    x0, y0, x1, y1 = (round(float(value)) for value in item.box_xyxy)
                    views.append((weight, frame.image[y0:y1, x0:x1].copy()))
            if len(views) > 8 * _CROPS:  # of a long track each other one will do
                views = views[::2]
    if not views:
        known = ", ".join(f"{number} ({identity})" for number, identity in list(seen.items())[:20]) or "none"
        raise InputError(f"there is no track {track} in {source}; its tracks: {known}")
    whole = [crop for weight, crop in views if weight >= GOOD] or [crop for _, crop in views]
    places = np.unique(np.linspace(0, len(whole) - 1, min(_CROPS, len(whole))).round().astype(int))
    return [whole[place] for place in places]


def _weights(objects: Sequence[TrackedObject], size: tuple[int, ...]) -> list[float]:
    if not objects:
        return []
    weights = view_weights(np.stack([item.box_xyxy for item in objects]), (size[0], size[1]))
    return [float(weight) for weight in weights]
