"""The embedded gallery: exact cosine search against a naive reference, and states that readers never see half-made."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import EnrolmentError, InputError, UnknownLabelError
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.state import Scoring

from bundles import Array

DIMENSION = 6


def unit(seed: int, rows: int, dimension: int = DIMENSION) -> Array:
    values = np.random.default_rng(seed).standard_normal((rows, dimension))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def filled(scoring: Scoring, counts: list[int]) -> EmbeddedGallery:
    gallery = EmbeddedGallery(DIMENSION, scoring)
    for index, count in enumerate(counts):
        gallery.add(f"label {index}", unit(index, count))
    return gallery


def naive_score(gallery: EmbeddedGallery, query: Array, label: str) -> float:
    rows = gallery.contents()[label].astype(np.float64)
    nearest = max(float(row @ query) for row in rows)
    mean = rows.mean(axis=0)
    prototype = float(mean @ query / np.linalg.norm(mean))
    return {"nearest": nearest, "prototype": prototype, "blend": (nearest + prototype) / 2}[gallery.scoring]


@pytest.mark.parametrize("scoring", ["nearest", "prototype", "blend"])
@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=6), top_k=st.integers(1, 8), seed=st.integers(50, 60))
def test_search_against_the_naive_reference(scoring: Scoring, counts: list[int], top_k: int, seed: int) -> None:
    gallery = filled(scoring, counts)
    queries = unit(seed, 3)
    for query, matches in zip(queries, gallery.search(queries, top_k), strict=True):
        expected = sorted(((naive_score(gallery, query, label), label) for label in gallery.labels), reverse=True)
        assert len(matches) == min(top_k, len(counts))
        assert [match.label for match in matches] == [label for _, label in expected[:top_k]]
        np.testing.assert_allclose([match.score for match in matches], [s for s, _ in expected[:top_k]], atol=1e-6)


def test_equal_scores_keep_the_order_of_enrolment() -> None:
    gallery = EmbeddedGallery(DIMENSION, "nearest")
    for label in ("zoe", "adam", "mia"):
        gallery.add(label, unit(1, 1))
    (matches,) = gallery.search(unit(1, 1), 3)
    assert [match.label for match in matches] == ["zoe", "adam", "mia"]
    assert matches[0].score == pytest.approx(1.0, abs=1e-6)


def test_an_empty_gallery_finds_nobody() -> None:
    gallery = EmbeddedGallery(DIMENSION, "nearest")
    assert gallery.labels == ()
    assert len(gallery) == 0
    assert gallery.search(unit(1, 3), 5) == [(), (), ()]


def test_add_extends_a_label_that_is_known() -> None:
    gallery = filled("nearest", [2, 1])
    gallery.add("label 0", unit(9, 3))
    assert gallery.labels == ("label 0", "label 1")
    assert len(gallery) == 6
    np.testing.assert_array_equal(gallery.contents()["label 0"], np.concatenate([unit(0, 2), unit(9, 3)]))


def test_remove() -> None:
    gallery = filled("nearest", [2, 1])
    gallery.remove("label 0")
    assert gallery.labels == ("label 1",)
    assert {match.label for match in gallery.search(unit(0, 1), 9)[0]} == {"label 1"}
    gallery.remove("label 1")
    assert gallery.search(unit(0, 1), 9) == [()]


def test_remove_what_is_not_there() -> None:
    gallery = filled("nearest", [1, 1])
    with pytest.raises(UnknownLabelError, match="'bob' is not enrolled; enrolled: label 0, label 1") as caught:
        gallery.remove("bob")
    assert str(caught.value).startswith("'bob' is not")  # not in quotes, as KeyError would show it
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, EnrolmentError)
    with pytest.raises(UnknownLabelError, match="enrolled: nobody"):
        EmbeddedGallery(DIMENSION, "nearest").remove("bob")
    assert gallery.labels == ("label 0", "label 1")


def rows_with(value: float) -> Array:
    rows = unit(1, 2)
    rows[1, 2] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (unit(1, 2, 5), r"embeddings of shape \(2, 5\); this gallery takes \(N, 6\), N >= 1"),
        (np.empty((0, DIMENSION), np.float32), r"shape \(0, 6\)"),
        (unit(1, 1)[0], r"shape \(6,\)"),
        (rows_with(np.nan), "not a row of length one"),
        (rows_with(np.inf), "not a row of length one"),
        (rows_with(7.0), "not a row of length one"),
        (np.zeros((1, DIMENSION), np.float32), r"not a row of length one \(all zero or not finite\?\)"),
    ],
)
def test_what_cannot_be_enrolled_changes_nothing(rows: Array, message: str) -> None:
    gallery = filled("nearest", [1, 2])
    before = gallery.contents()
    for label in ("label 0", "new"):
        with pytest.raises(InputError, match=message):
            gallery.add(label, rows)
    with pytest.raises(InputError, match=message):
        gallery.replace({"fine": unit(3, 1), "bad": rows})
    assert gallery.contents().keys() == before.keys()
    for label, kept in before.items():
        np.testing.assert_array_equal(gallery.contents()[label], kept)


def test_the_gallery_keeps_copies() -> None:
    gallery = EmbeddedGallery(DIMENSION, "nearest")
    rows = unit(1, 2)
    gallery.add("anna", rows)
    rows[:] = 0
    assert gallery.search(unit(1, 1), 1)[0][0].score == pytest.approx(1.0, abs=1e-6)


def test_readers_never_see_a_half_made_state() -> None:
    """Two labels are always exchanged together; a search must never find only one, or an array of the wrong size."""
    gallery = filled("nearest", [2, 2])
    states = [{f"{name} a": unit(1, 3), f"{name} b": unit(2, 1)} for name in ("old", "new")]
    gallery.replace(states[0])
    end = time.perf_counter() + 0.5
    wrong: list[object] = []

    def read() -> None:
        while time.perf_counter() < end:
            (matches,) = gallery.search(unit(1, 1), 5)
            if sorted(match.label[-1] for match in matches) != ["a", "b"] or len({m.label[:3] for m in matches}) != 1:
                wrong.append(matches)

    def write() -> None:
        turn = 0
        while time.perf_counter() < end:
            turn += 1
            gallery.replace(states[turn % 2])

    threads = [threading.Thread(target=target) for target in (read, read, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_no_addition_of_concurrent_writers_is_lost() -> None:
    gallery = EmbeddedGallery(DIMENSION, "nearest")

    def write(index: int) -> None:
        for turn in range(40):
            gallery.add(f"own {index}", unit(turn, 1))
            gallery.add("shared", unit(index, 1))

    threads = [threading.Thread(target=write, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {label: len(rows) for label, rows in gallery.contents().items()} == {
        "shared": 240,
        **{f"own {index}": 40 for index in range(6)},
    }
