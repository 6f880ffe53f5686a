"""Tracks before one camera, with and without that a label is one individual."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.camera_identities import main, rates, walks
from edgevis import Predictor
from edgevis.open_set.enrolments import Scene

from bundles import Array, write_tiny_bundle
from training_data import write_persons

pytestmark = pytest.mark.torch


def rows_at(*degrees: float) -> Array:
    """Unit rows in the plane of the first two axes."""
    angles = np.radians(np.array(degrees))
    rows = np.zeros((len(angles), 8), np.float32)
    rows[:, 0], rows[:, 1] = np.cos(angles), np.sin(angles)
    return rows


def scene() -> Scene:
    """Two persons, 60 degrees apart, by two cameras, four images each."""
    rows = np.concatenate([rows_at(0, 1, 2, 3), rows_at(4, 5, 6, 7), rows_at(60, 61, 62, 63), rows_at(64, 65, 66, 67)])
    return Scene("made", rows, np.repeat([0, 1], 8), np.tile(np.repeat([1, 2], 4), 2))


@pytest.mark.parametrize("same", [False, True])
def test_walks_are_by_the_camera_that_watches_and_show_nobody_twice(same: bool) -> None:
    made = scene()
    drawn = walks(made, labels=1, same=same, random=np.random.default_rng(0), camera=1)
    assert {label for label, _ in drawn.tracks} == {0, 1}
    (enrolled,) = drawn.enrolled.values()
    assert len(enrolled) == (2 if same else 4)
    seen = np.concatenate([rows for _, rows in drawn.tracks])
    assert len(seen) == (2 + 4 if same else 8)
    assert not {row.tobytes() for row in seen} & {row.tobytes() for row in enrolled}
    by = made.rows[made.cameras == (1 if same else 2)]
    assert {row.tobytes() for row in seen} <= {row.tobytes() for row in by}


def test_the_rule_takes_the_label_from_the_stranger(tmp_path: Path) -> None:
    drawn = walks(scene(), labels=1, same=False, random=np.random.default_rng(0), camera=1)
    (own,) = drawn.enrolled
    drawn.tracks.sort(key=lambda item: item[0] != own)  # the enrolled person comes first
    with Predictor(write_tiny_bundle(tmp_path / "reid.edgevis")) as predictor:
        predictor.threshold = 0.4  # which both reach
        assert rates(predictor, drawn, 2.0) == (1.0, 1.0)
        assert rates(predictor, drawn, 0.15) == (0.0, 1.0)


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(write_tiny_bundle(tmp_path / "reid.edgevis"))
    data = str(write_persons(tmp_path / "persons", persons=6))
    arguments = ["--bundle", bundle, "--data", data, "--labels", "2", "--enrolments", "2"]
    assert main(arguments) == 0
    assert "FPIR" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["camera"], row["holder_margin"]) for row in rows] == [
        ("other", 2.0),
        ("other", 0.15),
        ("same", 2.0),
        ("same", 0.15),
    ]
    assert main([*arguments[:5], "60"]) == 1
    assert "allowed: 1 to 5, so that persons has strangers, too" in capsys.readouterr().err
