"""Evidence over a track, unknown identities, and drift."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from runtime.errors import UnknownLabelError
from runtime.predictor import Predictor
from runtime.results import Match
from runtime.tasks._embedding import EmbeddingTask
from runtime.tracking.drift import DriftMonitor
from runtime.tracking.evidence import MAX_VIEWS, Evidence, decided_label
from runtime.tracking.identities import MAX_ROWS, Unknowns
from runtime.tracking.views import GOOD, POOR

from bundles import Array, Tiny, tiny_weights, write_tiny_bundle


def unit(values: Array) -> Array:
    return np.asarray(values / np.linalg.norm(values, axis=-1, keepdims=True), np.float32)


def view(direction: int, noise: float = 0.05, *, seed: int = 0, dimension: int = 8) -> Array:
    """A (D,) unit row near one axis."""
    return unit(np.eye(dimension)[direction] + noise * np.random.default_rng(seed).standard_normal(dimension))


def seen(*rows: Array) -> Evidence:
    evidence = Evidence()
    for row in rows:
        evidence.add(row, GOOD)
    return evidence


@pytest.fixture
def unknowns(tmp_path: Path) -> Unknowns:
    with Predictor(write_tiny_bundle(tmp_path / "reid.edgevis")) as predictor:
        task = cast(EmbeddingTask, predictor.task)
        return Unknowns(task.with_nothing_enrolled(), limit=3, forget_after_s=100.0)


def test_newer_views_weigh_more_and_poor_ones_nothing_beside_good_ones() -> None:
    evidence = Evidence()
    evidence.add(view(0), POOR)
    assert not evidence.has_good_view
    assert len(evidence.rows) == 1
    for direction in (1, 2, 3):
        evidence.add(view(direction), GOOD)
    assert len(evidence.rows) == 3
    assert evidence.weights.sum() == pytest.approx(1)
    assert (np.diff(evidence.weights) > 0).all()
    for _ in range(20):
        evidence.add(view(0), GOOD)
    assert len(evidence) == MAX_VIEWS


def test_the_mean_ranking_takes_a_missing_label_as_the_last_one() -> None:
    evidence = seen(view(0), view(1))
    older, newer = evidence.weights
    ranking = evidence.mean_ranking([[Match("a", 0.9), Match("b", 0.5)], [Match("b", 0.7), Match("c", 0.1)]])
    assert [match.label for match in ranking] == ["b", "a", "c"]
    assert dict(ranking)["b"] == pytest.approx(0.5 * older + 0.7 * newer)
    assert dict(ranking)["a"] == pytest.approx(0.9 * older + 0.1 * newer)


def test_a_label_near_the_threshold_does_not_flicker() -> None:
    label, labels = None, []
    for score in (0.49, 0.51, 0.49, 0.48, 0.51, 0.49, 0.40, 0.49):
        label = decided_label(label, [Match("alice", score)], 0.5, views=4)
        labels.append(label)
    assert labels == [None, *["alice"] * 5, None, None]


def test_another_label_must_lead_before_it_takes_over() -> None:
    def after(current: str, alice: float, bob: float) -> str | None:
        ranking = sorted([Match("alice", alice), Match("bob", bob)], key=lambda match: -match.score)
        return decided_label(current, ranking, 0.5, views=4)

    assert after("alice", 0.60, 0.62) == "alice"
    assert after("alice", 0.60, 0.64) == "bob"
    assert decided_label(None, [Match("alice", 0.51)], 0.5, views=1) is None  # one view alone
    assert decided_label(None, [Match("alice", -0.9)], None, views=2) == "alice"
    assert decided_label("alice", [], 0.5, views=2) is None


def test_an_unknown_comes_back_by_its_views_and_others_get_numbers(unknowns: Unknowns) -> None:
    for direction in range(2):
        name = unknowns.new(0.0)
        unknowns.learn(name, 0, np.stack([view(direction, seed=seed) for seed in range(3)]), 0.0)
    assert list(unknowns) == ["unknown-1", "unknown-2"]
    assert unknowns.find(seen(view(1, seed=7), view(1, seed=8)), 0, excluded=()) == "unknown-2"
    assert unknowns.find(seen(view(5), view(5, seed=8)), 0, excluded=()) is None
    assert unknowns.find(seen(view(1, seed=7)), 0, excluded={"unknown-2"}) is None  # it is elsewhere in the frame


def test_one_camera_is_asked_more_than_two(unknowns: Unknowns) -> None:
    name = unknowns.new(0.0)
    unknowns.learn(name, 0, view(0)[None], 0.0)
    bound = unknowns.threshold(same_camera=False)
    score = bound + 0.5 * (unknowns.threshold(same_camera=True) - bound)
    between = unit(score * view(0) + np.sqrt(1 - score**2) * np.eye(8)[5])  # of a cosine between the two
    row = unit(between - 0.0)
    assert bound < float(row @ view(0)) < unknowns.threshold(same_camera=True)
    assert unknowns.find(seen(row), 0, excluded=()) is None
    assert unknowns.find(seen(row), 1, excluded=()) == name


def test_an_unknown_keeps_a_bounded_number_of_different_views(unknowns: Unknowns) -> None:
    name = unknowns.new(0.0)
    for seed in range(40):
        unknowns.learn(name, 0, view(0, 0.5, seed=seed)[None], float(seed))
    rows = unknowns.rows(name)
    assert len(rows) == MAX_ROWS
    assert (rows @ rows.T - 2 * np.eye(MAX_ROWS)).max() < 0.95
    unknowns.learn(name, 0, rows[:1], 50.0)  # nothing new
    assert np.array_equal(unknowns.rows(name), rows)


def test_merging_keeps_all_views_and_forgetting_none(unknowns: Unknowns) -> None:
    first, second = unknowns.new(0.0), unknowns.new(0.0)
    unknowns.learn(first, 0, view(0)[None], 0.0)
    unknowns.learn(second, 1, view(1)[None], 0.0)
    unknowns.merge(first, second)
    assert list(unknowns) == [first]
    assert len(unknowns.rows(first)) == 2
    assert unknowns.find(seen(view(1, seed=3)), 1, excluded=()) == first
    unknowns.forget(first)
    assert unknowns.find(seen(view(1, seed=3)), 1, excluded=()) is None
    with pytest.raises(UnknownLabelError, match="no 'unknown-1' among the unknowns"):
        unknowns.rows(first)
    assert unknowns.new(0.0) == "unknown-3"  # a number is never given again


def test_unknowns_expire_by_age_and_by_number(unknowns: Unknowns) -> None:
    for place in range(6):
        name = unknowns.new(0.0)
        unknowns.learn(name, 0, view(place)[None], 10.0 * place)
    # 1 and 2 were not seen for more than 100 s, 1 is in a frame; of the other five, three may stay.
    assert set(unknowns.expire(115.0, present={"unknown-1"})) == {"unknown-2", "unknown-3", "unknown-4"}
    assert list(unknowns) == ["unknown-1", "unknown-5", "unknown-6"]


def test_drift_is_far_from_the_enrolment_and_not_only_other_persons(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    common = np.zeros(64)
    common[0] = 1.2

    def person() -> Array:
        return random.standard_normal(64) / 8 + common

    def views(centre: Array, shift: Array | float = 0.0) -> Array:
        return unit(centre + shift + 0.03 * random.standard_normal((6, 64)))

    with Predictor(write_tiny_bundle(tmp_path / "reid.edgevis", Tiny(weights=tiny_weights(dimension=64)))) as predictor:
        task = cast(EmbeddingTask, predictor.task)
        moved = np.zeros(64)
        moved[1] = 0.8
        calm, changed = DriftMonitor(task), DriftMonitor(task)
        assert calm.state().shift is None
        for label in range(8):
            task.gallery.add(f"person {label}", views(person()))
        for track in range(8):
            centre = person()
            for row in views(centre):
                calm.add(track, row)
            for row in views(centre, moved):
                changed.add(track, row)
        quiet, loud = calm.state(), changed.state()
        assert quiet.shift is not None
        assert loud.shift is not None
        assert not quiet.alarm
        assert quiet.shift < 1.6 < 3 < loud.shift
        assert loud.alarm
        assert quiet.views == 48
        assert quiet.tracks == 8
