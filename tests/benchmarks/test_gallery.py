"""The benchmark of the gallery."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gallery, gallery_engines, gallery_predictor

from bundles import write_tiny_bundle


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between contenders, whose times nobody reads here."""
    monkeypatch.setattr(gallery, "_PAUSE", 0.0)


def test_all_engines_at_a_small_size(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rows", "300,2500", "--dimension", "32", "--batch", "4", "--seconds", "0.01", "--indexes", "--json"]
    assert gallery.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    ours = [f"edgevis ({kernel})" for kernel in gallery_engines.galleries()]
    assert "edgevis (onnxruntime)" in ours
    for size in (300, 2500):
        rows = {row["engine"]: row for row in found if row["rows"] == size}
        assert {gallery.PRODUCT, "NumPy", *ours} <= set(rows)
        assert rows[gallery.PRODUCT]["single_ratio"] == rows[gallery.PRODUCT]["batch_ratio"] == 1
        for name in ("NumPy", *ours):
            assert rows[name]["exact"]
            assert rows[name]["recall"] == 1
            for verb in ("add_ms", "remove_ms", "add_and_search_ms", "load_s", "single_ms", "batch_ms"):
                assert rows[name][verb] > 0
            assert rows[name]["single_ratio"] == pytest.approx(
                rows[name]["single_ms"] / rows[gallery.PRODUCT]["single_ms"]
            )
        for row in rows.values():
            assert row["recall"] is None or row["recall"] >= 0.99
            assert row["exact"] == (not any(word in row["engine"] for word in ("refined", "index")))


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert gallery.main(["--rows", "50", "--dimension", "16", "--batch", "3", "--seconds", "0.01", "--no-memory"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "search 3 ms" in lines[0]
    assert any("edgevis (onnxruntime)" in line and "1.000 exact" in line for line in lines)


@pytest.mark.parametrize("rows", ["10", "", "100,x", "-5", "1e5"])
def test_sizes_that_are_not_allowed(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gallery.main(["--rows", rows]) == 1
    assert "--rows is" in capsys.readouterr().err


def test_people_are_unit_rows_of_groups() -> None:
    rows, queries = gallery.people(200, 32)
    for some in (rows, queries):
        assert some.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(some, axis=1), 1, atol=1e-5)
    scores = rows @ rows.T
    same = np.arange(200)[:, None] // 20 == np.arange(200) // 20
    assert scores[same].mean() > scores[~same].mean() + 0.3


def test_a_predictor_with_a_large_gallery(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.edgevis")
    assert gallery_predictor.main(["--bundle", str(bundle), "--labels", "3000", "--runs", "3", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["labels"] == 3000
    assert all(row[name] > 0 for name in ("load_s", "embed_ms", "enrol_ms", "first_ms", "next_ms"))
