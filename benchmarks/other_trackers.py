"""Trackers of other packages on the detections that the pipeline's tracker is given, for ``benchmarks.pipeline``.

Each with its own default settings, by motion alone: no Re-ID and no camera motion. A package that is not installed is
left out. ``boxmot`` and ``ultralytics`` need torch, torchvision and another OpenCV: they run when they are installed
without their dependencies (``pip install --no-deps --target FOLDER``, with the folder at the end of ``PYTHONPATH``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module, util
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgevis import Detections
from edgevis.metrics.tracking import FrameBoxes
from runtime.common.arrays import Array

Update = Callable[[Detections, tuple[int, int]], FrameBoxes]
"""The tracks of the next frame by its detections and its size (height, width)."""

_SURE = 0.5
"""The score, 0..1, of detections that are given to trackers that have no use for the others."""


def other_trackers(fps: float) -> Iterator[tuple[str, Update]]:
    """The name of each tracker that is installed, and the tracker, which has seen nothing; ``fps`` of the video."""
    for package, trackers in _PACKAGES.items():
        if util.find_spec(package) is not None:
            for name, opened in trackers:
                yield f"{package}: {name}", opened(fps)


def _trackers(name: str) -> Callable[[float], Update]:
    def opened(fps: float) -> Update:
        import supervision
        import trackers

        tracker = getattr(trackers, name)()

        def update(detections: Detections, size: tuple[int, int]) -> FrameBoxes:
            given = supervision.Detections(
                xyxy=detections.boxes_xyxy, confidence=detections.scores, class_id=detections.class_ids
            )
            tracked = tracker.update(given)
            real = tracked.tracker_id >= 0
            return tracked.tracker_id[real].tolist(), tracked.xyxy[real]

        return update

    return opened


def _ultralytics(module: str, name: str) -> Callable[[float], Update]:
    def opened(fps: float) -> Update:
        # As in its bytetrack.yaml and botsort.yaml, but without camera motion.
        settings = SimpleNamespace(
            track_high_thresh=0.25,
            track_low_thresh=0.1,
            new_track_thresh=0.25,
            track_buffer=30,
            match_thresh=0.8,
            fuse_score=True,
            gmc_method="none",
            proximity_thresh=0.5,
            appearance_thresh=0.8,
            with_reid=False,
            model="auto",
        )
        tracker = getattr(import_module(f"ultralytics.trackers.{module}"), name)(settings)

        def update(detections: Detections, size: tuple[int, int]) -> FrameBoxes:
            boxes = _UltralyticsBoxes(detections.boxes_xyxy, detections.scores)
            rows = np.asarray(tracker.update(boxes, np.zeros((*size, 3), np.uint8))).reshape(-1, 8)
            return rows[:, 4].astype(int).tolist(), rows[:, :4]

        return update

    return opened


class _UltralyticsBoxes:
    """Boxes with the members that Ultralytics' trackers read."""

    def __init__(self, xyxy: Array, conf: Array) -> None:
        self.xyxy, self.conf, self.cls = xyxy, conf, np.zeros(len(conf))

    @property
    def xywh(self) -> Array:
        low, high = self.xyxy[:, :2], self.xyxy[:, 2:]
        return np.concatenate([(low + high) / 2, high - low], axis=1)

    def __len__(self) -> int:
        return len(self.conf)

    def __getitem__(self, index: Any) -> _UltralyticsBoxes:
        return _UltralyticsBoxes(self.xyxy[index], self.conf[index])


def _boxmot(name: str, **settings: Any) -> Callable[[float], Update]:
    def opened(fps: float) -> Update:
        import boxmot

        tracker = getattr(boxmot, name)(**settings)

        def update(detections: Detections, size: tuple[int, int]) -> FrameBoxes:
            columns = (detections.boxes_xyxy, detections.scores[:, None], np.zeros((len(detections), 1)))
            given = np.concatenate(columns, axis=1).astype(np.float32)
            rows = np.asarray(tracker.update(given, np.zeros((*size, 3), np.uint8))).reshape(-1, 8)
            return rows[:, 4].astype(int).tolist(), rows[:, :4]

        return update

    return opened


def _motpy(fps: float) -> Update:
    import motpy

    tracker = motpy.MultiObjectTracker(dt=1 / fps)
    numbers: dict[str, int] = {}

    def update(detections: Detections, size: tuple[int, int]) -> FrameBoxes:
        sure = _sure(detections)
        tracker.step([motpy.Detection(box=box, score=float(score)) for box, score in sure])
        tracks: Sequence[Any] = tracker.active_tracks()
        ids = [numbers.setdefault(track.id, len(numbers)) for track in tracks]
        return ids, np.array([track.box for track in tracks]).reshape(-1, 4)

    return update


def _norfair(fps: float) -> Update:
    import norfair

    tracker = norfair.Tracker(distance_function="iou", distance_threshold=0.7)

    def update(detections: Detections, size: tuple[int, int]) -> FrameBoxes:
        given = [
            norfair.Detection(points=box.reshape(2, 2), scores=np.array([score, score]))
            for box, score in _sure(detections)
        ]
        tracks = tracker.update(given)
        boxes = np.array([track.estimate.reshape(4) for track in tracks]).reshape(-1, 4)
        return [track.id for track in tracks], boxes

    return update


def _sure(detections: Detections) -> list[tuple[Array, float]]:
    pairs = zip(detections.boxes_xyxy, detections.scores.tolist(), strict=True)
    return [(box, score) for box, score in pairs if score >= _SURE]


_PACKAGES: dict[str, tuple[tuple[str, Callable[[float], Update]], ...]] = {
    "trackers": (("ByteTrack", _trackers("ByteTrackTracker")), ("SORT", _trackers("SORTTracker"))),
    "ultralytics": (
        ("BoT-SORT", _ultralytics("bot_sort", "BOTSORT")),
        ("ByteTrack", _ultralytics("byte_tracker", "BYTETracker")),
    ),
    "boxmot": (
        ("BoT-SORT", _boxmot("BotSort", use_embeddings=False, use_cmc=False)),
        ("OC-SORT", _boxmot("OcSort")),
        ("ByteTrack", _boxmot("ByteTrack")),
    ),
    "norfair": (("IoU", _norfair),),
    "motpy": (("IoU", _motpy),),
}
