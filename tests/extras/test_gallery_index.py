"""The approximate index: exact scores, what is new or forgotten counts at once, and it is used only where it pays."""

from __future__ import annotations

import gc
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevis import InputError, Predictor
from runtime.common.arrays import Array, unit_rows
from runtime.common.extras import install_command
from runtime.gallery import index as index_module
from runtime.gallery.embedded import EmbeddedGallery
from runtime.gallery.rows import RowsByLabel
from runtime.gallery.state import Scoring

from bundles import Tiny, textured, write_tiny_bundle

DIMENSION = 64


def views(count: int, *, seed: int, of: int = 4) -> Array:
    """(count, D) unit rows: ``of`` views of each person, one after the other."""
    random = np.random.default_rng(seed)
    centres = np.repeat(random.standard_normal((-(-count // of), DIMENSION)), of, axis=0)[:count]
    return unit_rows(np.asarray(centres + 0.7 * random.standard_normal((count, DIMENSION)), np.float32))


def filled(scoring: Scoring, rows: Array, *, per_label: int = 1, index_from: int | None = 1000) -> EmbeddedGallery:
    gallery = EmbeddedGallery(DIMENSION, scoring, index_from=index_from)
    labels = [f"label {number}" for number in range(len(rows) // per_label)]
    gallery.replace(RowsByLabel(labels, np.full(len(labels), per_label), rows))
    gallery.wait_for_index()
    return gallery


@pytest.fixture(autouse=True)
def always_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the exact search is on so few rows: what is tested is what the index finds."""
    measured = index_module.measured

    def used(*arguments: object) -> object:
        return replace(measured(*arguments), used=True)  # type: ignore[arg-type]

    monkeypatch.setattr("runtime.gallery.indexing.measured", used)


@pytest.mark.parametrize(("scoring", "per_label"), [("nearest", 1), ("nearest", 4), ("blend", 4), ("prototype", 4)])
def test_it_finds_what_the_exact_search_finds(scoring: Scoring, per_label: int) -> None:
    rows = views(4000, seed=1)
    indexed = filled(scoring, rows, per_label=per_label)
    exact = filled(scoring, rows, per_label=per_label, index_from=None)
    assert exact.index is None
    info = indexed.index
    assert info is not None
    assert info.rows == 4000
    assert info.recall >= index_module.MIN_RECALL
    queries = views(4000, seed=1)[::80] + np.float32(0.05) * views(50, seed=2, of=1)
    queries = unit_rows(queries)
    hits = []
    for own, true in zip(indexed.search(queries, 10), exact.search(queries, 10), strict=True):
        known = {match.label: match.score for match in true}
        assert [match.score for match in own] == sorted((match.score for match in own), reverse=True)
        assert all(match.score == known[match.label] for match in own if match.label in known)  # never approximate
        hits.append(len({match.label for match in own} & set(known)) / 10)
    assert np.mean(hits) >= 0.98


def test_what_is_added_or_forgotten_counts_at_once() -> None:
    rows = views(3000, seed=3)
    gallery = filled("nearest", rows)
    new = views(1, seed=4)
    gallery.add("new", new)
    assert gallery.search(new, 1)[0][0].label == "new"
    gallery.add("label 7", new)  # of a label that the index knows
    gallery.remove("new")
    assert gallery.search(new, 1)[0][0].label == "label 7"
    gallery.remove("label 9")
    found = [match.label for match in gallery.search(rows[9:10], 10)[0]]
    assert "label 9" not in found
    assert len(found) == 10


def test_it_grows_and_is_made_anew() -> None:
    rows = views(4000, seed=5)
    gallery = filled("nearest", rows[:2000])
    assert gallery.index is not None
    assert gallery.index.rows == 2000
    gallery.add("many", rows[2000:])
    gallery.wait_for_index()
    assert gallery.index.rows == 4000  # the same graph, and what is new
    gallery.remove("many")  # half of it: none of these embeddings stays in memory
    gallery.wait_for_index()
    assert gallery.index.rows == 2000
    assert gallery.search(rows[3:4], 1)[0][0].label == "label 3"
    gallery.replace({"only": rows[:1]})
    assert gallery.index is None
    assert gallery.search(rows[:1], 3)[0][0].label == "only"


def test_many_rows_of_few_labels_and_queries_that_are_not_finite() -> None:
    rows = views(2000, seed=6, of=500)
    gallery = filled("nearest", rows, per_label=500)
    exact = filled("nearest", rows, per_label=500, index_from=None)
    assert gallery.search(rows[:3], 4) == exact.search(rows[:3], 4)
    broken = np.full((1, DIMENSION), np.nan, np.float32)
    assert [match.label for match in gallery.search(broken, 2)[0]] == ["label 0", "label 1"]


def test_an_index_that_does_not_pay_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.gallery.indexing.measured", index_module.measured)
    monkeypatch.setattr(index_module, "MIN_RECALL", 1.1)
    rows = views(2000, seed=7)
    gallery = filled("nearest", rows)
    info = gallery.index
    assert info is not None
    assert not info.used
    assert "are needed" in info.why

    def refuse(*_: object) -> object:
        raise AssertionError("searched through the index")

    monkeypatch.setattr(index_module.RowIndex, "best", refuse)
    assert gallery.search(rows[:1], 1)[0][0].label == "label 0"


def test_the_thread_ends_with_the_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    measurements = []
    measured = index_module.measured

    def recorded(*arguments: object) -> object:
        measurements.append(measured(*arguments))  # type: ignore[arg-type]
        return measurements[-1]

    monkeypatch.setattr("runtime.gallery.indexing.measured", recorded)
    before = set(threading.enumerate())
    gallery = EmbeddedGallery(DIMENSION, "nearest", index_from=1000)
    gallery.replace({str(number): row[None] for number, row in enumerate(views(20_000, seed=8))})
    (thread,) = [thread for thread in set(threading.enumerate()) - before if thread.name == "edgevis-index"]
    del gallery
    deadline = time.monotonic() + 30
    while thread.is_alive() and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert not thread.is_alive()
    assert measurements == []


def test_through_the_predictor(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.edgevis", Tiny("reid"))
    with Predictor(bundle, index_from=4) as predictor:
        assert predictor.info.search_index is None
        for number in range(8):
            predictor.enroll(f"person {number}", textured(number, 64, 32))
        deadline = time.monotonic() + 30
        while predictor.info.search_index is None and time.monotonic() < deadline:
            time.sleep(0.01)
        info = predictor.info
        assert info.search_index is not None
        assert info.search_index.rows >= 4
        assert info.to_dict()["search_index"]["recall"] == info.search_index.recall
        assert predictor.predict(textured(3, 64, 32)).matches[0].label == "person 3"


def test_what_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (0, -1, True, 2.5, "many"):
        with pytest.raises(InputError, match="allowed: None or an int >= 1"):
            EmbeddedGallery(DIMENSION, "nearest", index_from=value)  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape(install_command("search"))):
        EmbeddedGallery(DIMENSION, "nearest", index_from=1)
