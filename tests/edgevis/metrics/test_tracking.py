"""HOTA, IDF1 and MOTA against TrackEval's values."""

from __future__ import annotations

import numpy as np
import pytest

from edgevis.metrics.tracking import FrameBoxes, tracking_scores

# By TrackEval 1.3.0 (HOTA, DetA, AssA, IDF1, MOTA, switches, misses, false alarms) on the scenes below.
TRACKEVAL = (
    (0.3443325766, 0.4622907582, 0.2569233140, 0.5559566787, 0.5144927536, 6, 30, 31),
    (0.3019276137, 0.4492325459, 0.2039890008, 0.4620938628, 0.4927536232, 5, 32, 33),
    (0.3772696976, 0.5235485255, 0.2722198305, 0.5106382979, 0.6500000000, 5, 21, 23),
)


def scene(seed: int) -> tuple[list[FrameBoxes], list[FrameBoxes]]:
    """Four objects that wander, and tracks that miss, swap and see what is not there."""
    random = np.random.default_rng(seed)
    truth: list[FrameBoxes] = []
    tracks: list[FrameBoxes] = []
    position, ids = random.random((4, 2)) * 200, np.arange(4)
    for frame in range(40):
        position = position + random.normal(0, 4, position.shape)
        there = random.random(4) > 0.15
        boxes = np.concatenate([position, position + 40], axis=1)
        truth.append(([int(i) for i in np.flatnonzero(there)], boxes[there].round(2)))
        if frame in (15, 28):
            random.shuffle(ids)
        seen = random.random(4) > 0.2
        moved = (boxes + random.normal(0, 4, boxes.shape))[seen].round(2)
        names = [int(ids[i]) for i in np.flatnonzero(seen)]
        if random.random() > 0.7:
            names.append(50 + frame % 3)
            moved = np.concatenate([moved, [[300, 300, 340, 340]]])
        tracks.append((names, moved))
    return truth, tracks


@pytest.mark.parametrize("seed", range(3))
def test_the_scores_are_those_of_trackeval(seed: int) -> None:
    scores = tracking_scores(*scene(seed))
    expected = TRACKEVAL[seed]
    values = (scores.hota, scores.deta, scores.assa, scores.idf1, scores.mota)
    assert values == pytest.approx(expected[:5], abs=1e-9)
    assert (scores.switches, scores.misses, scores.false_alarms) == expected[5:]


def test_tracks_that_are_the_truth_are_perfect() -> None:
    truth, _ = scene(0)
    scores = tracking_scores(truth, [([f"name {i}" for i in ids], boxes) for ids, boxes in truth])
    assert (scores.hota, scores.idf1, scores.mota) == pytest.approx((1, 1, 1))
    assert scores.switches == 0


def test_nothing_at_all_scores_nothing() -> None:
    empty: list[FrameBoxes] = [((), np.empty((0, 4)))] * 3
    scores = tracking_scores(empty, empty)
    assert (scores.hota, scores.idf1, scores.objects) == (0, 0, 0)
