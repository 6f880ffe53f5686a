"""HOTA, IDF1 and MOTA of tracks against boxes with identities.

Sources: Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-object Tracking", IJCV 2021, sections 5 and 6;
Ristani et al., ECCV Workshops 2016 (IDF1); Bernardin and Stiefelhagen, EURASIP JIVP 2008 (MOTA). The values are those
of TrackEval 1.3, whose package brings a second OpenCV along.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array
from runtime.detection.boxes import pairwise_iou
from runtime.tracking.assignment import assign

_ALPHAS = np.arange(0.05, 0.99, 0.05)
_MIN_IOU = 0.5  # of a match, for IDF1 and MOTA
_EPSILON = float(np.finfo(np.float64).eps)

FrameBoxes = tuple[Sequence[Hashable], Array]
"""The identities in one frame, and their (N, 4) boxes xyxy in pixels."""


@dataclass(frozen=True, slots=True)
class TrackingScores:
    """How well tracks follow their objects; all but the counts 0..1, MOTA up to 1.

    Attributes:
        hota: The mean over 19 overlaps of the geometric mean of detection and association accuracy.
        deta, assa: Detection and association accuracy, the means over the same.
        idf1: F1 of detections under the best one-to-one assignment of identities.
        mota: 1 - (misses + false alarms + identity switches) / objects.
        switches: Identity switches.
        misses, false_alarms: Objects without a track, and tracks without an object, each counted once a frame.
        objects: Objects, each counted once a frame.
    """

    hota: float
    deta: float
    assa: float
    idf1: float
    mota: float
    switches: int
    misses: int
    false_alarms: int
    objects: int


def tracking_scores(truth: Sequence[FrameBoxes], tracks: Sequence[FrameBoxes]) -> TrackingScores:
    """The scores of tracks.

    Args:
        truth: The objects of each frame.
        tracks: The tracks of the same frames.
    """
    frames = _numbered(truth, tracks)
    hota, deta, assa = _hota(frames)
    misses, false_alarms, switches, objects = _clear(frames)
    mota = 1.0 - (misses + false_alarms + switches) / max(objects, 1)
    return TrackingScores(hota, deta, assa, _idf1(frames), mota, switches, misses, false_alarms, objects)


@dataclass(frozen=True, slots=True)
class _Compared:
    """One frame: identities as numbers from 0, and the overlaps."""

    objects: npt.NDArray[np.int64]
    tracks: npt.NDArray[np.int64]
    overlaps: npt.NDArray[np.float64]


def _numbered(truth: Sequence[FrameBoxes], tracks: Sequence[FrameBoxes]) -> list[_Compared]:
    numbers: tuple[dict[Hashable, int], dict[Hashable, int]] = ({}, {})
    frames = []
    for pair in zip(truth, tracks, strict=True):
        ids = [
            np.array([known.setdefault(name, len(known)) for name in names], np.int64)
            for known, (names, _) in zip(numbers, pair, strict=True)
        ]
        boxes = [np.asarray(part[1], np.float64).reshape(-1, 4) for part in pair]
        frames.append(_Compared(ids[0], ids[1], pairwise_iou(boxes[0], boxes[1])))
    return frames


def _sizes(frames: Sequence[_Compared]) -> tuple[int, int]:
    objects = max((int(frame.objects.max(initial=-1)) for frame in frames), default=-1) + 1
    return objects, max((int(frame.tracks.max(initial=-1)) for frame in frames), default=-1) + 1


def _counts(frames: Sequence[_Compared]) -> tuple[Array, Array]:
    """How often each object and each track is there."""
    objects, tracks = _sizes(frames)
    present, tracked = np.zeros(objects), np.zeros(tracks)
    for frame in frames:
        present[frame.objects] += 1
        tracked[frame.tracks] += 1
    return present, tracked


def _matched(scores: Array) -> tuple[Array, Array]:
    """Rows and columns of the pairs whose scores add up to the most."""
    pairs = np.array(assign(-scores, 1.0), np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _hota(frames: Sequence[_Compared]) -> tuple[float, float, float]:
    present, tracked = _counts(frames)
    potential = np.zeros((len(present), len(tracked)))
    for frame in frames:
        overlaps = frame.overlaps
        either = overlaps.sum(axis=0)[None] + overlaps.sum(axis=1)[:, None] - overlaps
        potential[np.ix_(frame.objects, frame.tracks)] += np.divide(
            overlaps, either, out=np.zeros_like(overlaps), where=either > _EPSILON
        )
    either = present[:, None] + tracked[None] - potential
    aligned = potential / np.maximum(either, 1.0)
    hits = np.zeros(len(_ALPHAS))
    joint = np.zeros((len(_ALPHAS), *potential.shape))
    for frame in frames:
        rows, columns = _matched(aligned[np.ix_(frame.objects, frame.tracks)] * frame.overlaps)
        overlaps = frame.overlaps[rows, columns]
        for place, alpha in enumerate(_ALPHAS):
            near = overlaps >= alpha - _EPSILON
            hits[place] += near.sum()
            joint[place, frame.objects[rows[near]], frame.tracks[columns[near]]] += 1
    total = present.sum() + tracked.sum() - hits
    deta = hits / np.maximum(total, 1.0)
    association = joint / np.maximum(present[None, :, None] + tracked[None, None] - joint, 1.0)
    assa = (joint * association).sum(axis=(1, 2)) / np.maximum(hits, 1.0)
    return float(np.sqrt(deta * assa).mean()), float(deta.mean()), float(assa.mean())


def _clear(frames: Sequence[_Compared]) -> tuple[int, int, int, int]:
    """Misses, false alarms, switches and objects; a match of the frame before is kept where it may be."""
    objects, _ = _sizes(frames)
    ever, before = np.full(objects, -1), np.full(objects, -1)
    misses = false_alarms = switches = total = 0
    for frame in frames:
        kept = frame.tracks[None] == before[frame.objects][:, None]
        scores = np.where(frame.overlaps >= _MIN_IOU - _EPSILON, 1000.0 * kept + frame.overlaps, 0.0)
        rows, columns = _matched(scores)
        real = scores[rows, columns] > _EPSILON
        rows, columns = rows[real], columns[real]
        matched, by = frame.objects[rows], frame.tracks[columns]
        switches += int(((ever[matched] >= 0) & (ever[matched] != by)).sum())
        ever[matched] = by
        before[:] = -1
        before[matched] = by
        total += len(frame.objects)
        misses += len(frame.objects) - len(matched)
        false_alarms += len(frame.tracks) - len(matched)
    return misses, false_alarms, switches, total


def _idf1(frames: Sequence[_Compared]) -> float:
    present, tracked = _counts(frames)
    joint = np.zeros((len(present), len(tracked)))
    for frame in frames:
        rows, columns = np.nonzero(frame.overlaps >= _MIN_IOU)
        np.add.at(joint, (frame.objects[rows], frame.tracks[columns]), 1)
    # Each pair of identities saves a miss and a false alarm for each frame in which both are at one place.
    rows, columns = _matched(joint)
    right = joint[rows, columns].sum()
    return float(2 * right / max(present.sum() + tracked.sum(), 1.0))
