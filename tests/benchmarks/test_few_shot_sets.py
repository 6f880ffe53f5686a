"""Several data sets in one: its classes, what each is for, and the same bytes each time."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import few_shot_sets
from edgevis.data.class_split import split_classes
from edgevis.data.leakage import SplitCheck

KINDS = {"apple": "base", "fig": "base", "kiwi": "val", "lime": "val", "plum": "val", "pear": "val"}


def packed(path: Path, *, seed: int) -> Path:
    """Six classes of two pictures with a table."""
    random = np.random.default_rng(seed)
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(("path", "class_name", "split"))
    with zipfile.ZipFile(path, "w") as archive:
        for kind, split in KINDS.items():
            for number in range(2):
                name = f"{kind}/{number}.png"
                image = random.integers(0, 256, (8, 8, 3), np.uint8)
                archive.writestr(name, cv2.imencode(".png", image)[1].tobytes())
                rows.writerow((name, kind, split))
        archive.writestr("labels.csv", table.getvalue())
    return path


def test_sets_become_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [packed(tmp_path / f"{name}_dev.zip", seed=seed) for seed, name in enumerate(("fruit", "shop"))]
    outputs = [tmp_path / "one.zip", tmp_path / "two.zip"]
    for output in outputs:
        assert few_shot_sets.main([*map(str, sources), "--output", str(output)]) == 0
    assert "val: 8 images of 4 classes" in capsys.readouterr().out
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    with zipfile.ZipFile(outputs[0]) as archive, zipfile.ZipFile(sources[1]) as source:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        assert {row["path"] for row in rows} == set(archive.namelist()) - {"labels.csv"}
        assert archive.read("shop/apple/1.png") == source.read("apple/1.png")
    expected = {"apple": "train", "fig": "train", "kiwi": "val", "lime": "test", "pear": "val", "plum": "test"}
    found = {row["class_name"]: row["split"] for row in rows}
    assert found == {f"{name}/{kind}": split for name in ("fruit", "shop") for kind, split in expected.items()}
    split = split_classes(outputs[0], held_out=0.15, mixed=False, seed=0, check=SplitCheck())
    assert len({split.images.labels[place] for place in split.train}) == 4
