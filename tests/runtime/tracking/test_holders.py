"""Who has had a label before a camera."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from runtime.predictor import Predictor
from runtime.results import Match
from runtime.tasks._embedding import EmbeddingTask
from runtime.tracking.evidence import Evidence
from runtime.tracking.holders import Holders
from runtime.tracking.records import TrackRecord
from runtime.tracking.views import GOOD

from bundles import Array, write_tiny_bundle

MARGIN = 0.15


@pytest.fixture
def predictor(tmp_path: Path) -> Iterator[Predictor]:
    with Predictor(write_tiny_bundle(tmp_path / "reid.edgevis")) as predictor:
        predictor.enroll_rows("ann", towards(0)[None])
        yield predictor


@pytest.fixture
def holders(predictor: Predictor) -> Holders:
    return Holders(cast(EmbeddingTask, predictor.task), margin=MARGIN, limit=3, forget_after_s=100.0)


def towards(direction: int, seed: int = 0) -> Array:
    """A (D,) unit row near one axis."""
    row = np.eye(8)[direction] + 0.05 * np.random.default_rng(seed).standard_normal(8)
    return np.asarray(row / np.linalg.norm(row), np.float32)


def track(number: int, direction: int, score: float, *, camera: int = 0, label: str | None = "ann") -> TrackRecord:
    """A track of three views that are alike, with a score for ann."""
    evidence = Evidence()
    for seed in range(3):
        evidence.add(towards(direction, 10 * number + seed), GOOD)
    record = TrackRecord(number, 0, camera, "person", 0.0, 1.0, evidence, label)
    record.matches = (Match("ann", score),)
    return record


def refused(holders: Holders, record: TrackRecord) -> bool:
    return holders.refuses(record.matches[0], record)


def test_another_object_with_less_is_refused_before_the_same_camera(holders: Holders) -> None:
    assert not refused(holders, track(2, 1, 0.5))  # nobody has had the label
    holders.learn(track(1, 0, 0.9), now=0.0)
    assert refused(holders, track(2, 1, 0.5))
    assert not refused(holders, track(2, 1, 0.5, camera=1))
    assert not refused(holders, track(2, 1, 0.9 - MARGIN))
    assert refused(holders, track(2, 1, 0.89 - MARGIN))


def test_the_holder_is_not_refused_whatever_its_score(holders: Holders) -> None:
    holders.learn(track(1, 0, 0.9), now=0.0)
    assert not refused(holders, track(2, 0, 0.3))  # another track that looks like it
    assert not refused(holders, track(1, 3, 0.3))  # its track, which has turned
    holders.learn(track(1, 3, 0.4), now=1.0)
    assert not refused(holders, track(4, 3, 0.3))  # this side of it is known now
    assert refused(holders, track(5, 1, 0.7))  # and the best score remains


def test_a_better_one_takes_the_label(holders: Holders) -> None:
    holders.learn(track(1, 1, 0.5), now=0.0)
    better = track(2, 0, 0.9)
    assert not refused(holders, better)
    holders.learn(better, now=1.0)
    assert refused(holders, track(3, 1, 0.5))
    holders.learn(track(4, 2, 0.8), now=2.0)  # within the margin, and so it has the label, but it is not the best
    assert not refused(holders, track(5, 0, 0.3))


def test_holders_are_forgotten_with_time_by_number_and_when_the_enrolment_changes(
    holders: Holders, predictor: Predictor
) -> None:
    for camera in range(5):
        holders.learn(track(camera, 0, 0.9, camera=camera), now=float(camera))
    assert len(holders) == 3
    assert not refused(holders, track(9, 1, 0.5, camera=1))  # the oldest
    assert refused(holders, track(9, 1, 0.5, camera=4))
    holders.expire(103.5)
    assert len(holders) == 1
    predictor.enroll_rows("ann", towards(4)[None])
    assert not refused(holders, track(9, 1, 0.5, camera=4))
    assert len(holders) == 0
