"""Galleries that grow and shrink: exact search, constant costs and followed scores through random changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError, UnknownLabelError
from runtime.gallery import store
from runtime.gallery.blocks import PlainVectors
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.queries import Queries
from runtime.gallery.search import best
from runtime.gallery.state import GalleryState, Scoring

from bundles import Array

DIMENSION = 8
NAMES = [f"label {index}" for index in range(7)]
# Which label gains or loses what: a count of rows to add, or None to forget it.
CHANGES = st.lists(st.tuples(st.sampled_from(NAMES), st.none() | st.integers(1, 9)), max_size=40)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Blocks so small that a few rows fill, join, empty and renumber them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "TAIL_ROWS", 4)
        patch.setattr(store, "_BLOCK_ROWS", 16)
        patch.setattr(store, "_GAPS", 2)
        patch.setattr(store, "_SUMS", 2)
        yield


def unit(random: np.random.Generator, rows: int) -> Array:
    values = random.standard_normal((rows, DIMENSION))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def change(gallery: EmbeddedGallery, model: dict[str, Array], label: str, rows: Array | None) -> None:
    """The same change to a gallery and to a dict."""
    if rows is not None:
        gallery.add(label, rows)
        model[label] = np.concatenate([model[label], rows]) if label in model else rows
    elif label in model:
        gallery.remove(label)
        del model[label]
    else:
        with pytest.raises(UnknownLabelError):
            gallery.remove(label)


def brute_force(model: dict[str, Array], query: Array, scoring: Scoring) -> dict[str, float]:
    scores = {}
    for label, rows in model.items():
        wide = rows.astype(np.float64)
        total = wide.sum(axis=0)
        nearest = (wide @ query.astype(np.float64)).max()
        prototype = total @ query / np.linalg.norm(total)
        found = {"nearest": nearest, "prototype": prototype, "blend": (nearest + prototype) / 2}
        scores[label] = float(np.float32(found[scoring]))
    return scores


def check_search(gallery: EmbeddedGallery, model: dict[str, Array], queries: Array) -> None:
    for top_k in (1, 3, 99):
        for query, matches in zip(queries, gallery.search(queries, top_k), strict=True):
            scores = brute_force(model, query, gallery.scoring)
            assert len(matches) == min(top_k, len(model))
            expected = sorted(scores.values(), reverse=True)[:top_k]
            np.testing.assert_allclose([match.score for match in matches], expected, atol=2e-7)
            for match in matches:
                assert match.score == pytest.approx(scores[match.label], abs=2e-7)


def check_contents(gallery: EmbeddedGallery, model: dict[str, Array]) -> None:
    assert gallery.labels == tuple(model)
    assert gallery.label_count == len(model)
    assert len(gallery) == sum(len(rows) for rows in model.values())
    found = gallery.contents()
    assert list(found) == list(model)
    for label, rows in model.items():
        np.testing.assert_array_equal(found[label], rows)


@pytest.mark.parametrize("scoring", ["nearest", "prototype", "blend"])
@given(changes=CHANGES, seed=st.integers(0, 99))
@settings(max_examples=60)
def test_random_changes_against_brute_force(scoring: Scoring, changes: list[tuple[str, int | None]], seed: int) -> None:
    random = np.random.default_rng(seed)
    gallery, model = EmbeddedGallery(DIMENSION, scoring), dict[str, Array]()
    states = [(gallery.state, gallery.contents())]
    for label, count in changes:
        before = gallery.version
        known = label in model
        change(gallery, model, label, None if count is None else unit(random, count))
        assert (gallery.version > before) == (count is not None or known)
        states.append((gallery.state, {name: rows.copy() for name, rows in model.items()}))
        check_search(gallery, model, unit(random, 1))
    check_contents(gallery, model)
    check_search(gallery, model, unit(random, 5))
    for state, then in states:  # a reader's state is still what it was
        assert state.labels == tuple(then)
        for (label, rows), expected in zip(state.grouped(), then.items(), strict=True):
            assert label == expected[0]
            np.testing.assert_array_equal(rows, expected[1])


@pytest.mark.parametrize("scoring", ["nearest", "prototype", "blend"])
@given(changes=CHANGES, seed=st.integers(0, 99), every=st.integers(1, 4))
@settings(max_examples=60)
def test_followed_scores_are_those_of_a_new_search(
    scoring: Scoring, changes: list[tuple[str, int | None]], seed: int, every: int
) -> None:
    random = np.random.default_rng(seed)
    gallery, model = EmbeddedGallery(DIMENSION, scoring), dict[str, Array]()
    probes = unit(random, 6)
    tracker = gallery.best_scores(probes)
    assert len(tracker) == 6
    for index, (label, count) in enumerate([*changes, *[("label 0", 1)] * every]):
        change(gallery, model, label, None if count is None else unit(random, count))
        if index == 20:  # everything at once, in another order
            model = {name: rows[:1].copy() for name, rows in reversed(model.items())}
            gallery.replace(model)
        if index % every:
            continue
        found = tracker.update()
        assert found.version == gallery.version
        assert found.label_count == len(model)
        assert tracker.update() is found
        for probe in range(6):
            scores = brute_force(model, probes[probe], scoring)
            best = max(scores.values(), default=-np.inf)
            assert found.scores[probe] == pytest.approx(best, abs=3e-7)
            label_found = found.labels[probe]
            assert (label_found is None) == (not scores)
            assert label_found is None or scores[label_found] == pytest.approx(best, abs=3e-7)


def test_what_a_tracker_refuses() -> None:
    gallery = EmbeddedGallery(DIMENSION, "nearest")
    with pytest.raises(InputError, match=r"probes of shape \(3, 5\); this gallery takes \(N, 8\)"):
        gallery.best_scores(np.ones((3, 5), np.float32))


def test_a_tracker_scores_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    gallery = EmbeddedGallery(DIMENSION, "nearest")
    for index in range(200):
        gallery.add(f"person {index}", unit(random, 1))
    tracker = gallery.best_scores(unit(random, 50))
    first = tracker.update()
    scored: list[int] = []
    take = PlainVectors.take

    def counted(self: PlainVectors, offsets: Array) -> Array:
        scored.append(len(offsets))
        return take(self, offsets)

    searched: list[int] = []

    def counted_best(state: GalleryState, queries: Queries, top_k: int) -> Iterator[tuple[Array, Array]]:
        searched.append(len(queries))
        return best(state, queries, top_k)

    monkeypatch.setattr(PlainVectors, "take", counted)
    monkeypatch.setattr("runtime.gallery.tracking.best", counted_best)
    gallery.add("new", unit(random, 2))
    tracker.update()
    assert sum(scored) == 2
    assert searched == []
    scored.clear()
    searched.clear()
    removed = first.labels[0]
    assert removed is not None
    expected = sum(label == removed for label in tracker.update().labels)
    gallery.remove(removed)
    tracker.update()
    assert sum(scored) == 0
    assert sum(searched) == expected


def test_searches_while_others_change_see_one_state() -> None:
    """Two labels are rows of one direction; whatever is added and removed meanwhile, both or neither are found."""
    random = np.random.default_rng(1)
    gallery = EmbeddedGallery(DIMENSION, "nearest")
    fixed = unit(random, 20)
    for index, row in enumerate(fixed):
        gallery.add(f"fixed {index}", row[None])
    done = threading.Event()
    wrong: list[object] = []
    tracker = gallery.best_scores(fixed)

    def read(seed: int) -> None:
        turn = seed
        while not done.is_set():
            turn = (turn + 1) % 20
            (matches,) = gallery.search(fixed[turn][None], 3)
            if matches[0].label != f"fixed {turn}" or abs(matches[0].score - 1) > 1e-6:
                wrong.append(matches)
            state = gallery.state
            if len(state.labels) != state.label_count or len(state.slots[state.slots >= 0]) != state.row_count:
                wrong.append(state)
            if not np.allclose(tracker.update().scores, 1, atol=1e-6):
                wrong.append("tracker")

    def write(seed: int) -> None:
        own = np.random.default_rng(seed)
        for turn in range(150):
            gallery.add(f"own {seed} {turn % 7}", unit(own, 1 + turn % 3))
            if turn % 7 == 6:
                gallery.remove(f"own {seed} {own.integers(7)}")
                for index in range(7):
                    if f"own {seed} {index}" in gallery.labels and own.random() < 0.6:
                        gallery.remove(f"own {seed} {index}")

    readers = [threading.Thread(target=read, args=(seed,)) for seed in (0, 9)]
    writers = [threading.Thread(target=write, args=(seed,)) for seed in (5, 6, 7)]
    for thread in [*readers, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert wrong == []
