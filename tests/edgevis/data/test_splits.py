"""What a check of splits reads, and the splits of real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgevis.data.class_split import split_classes
from edgevis.data.few_shot_split import split_masked_classes
from edgevis.data.files import open_files
from edgevis.data.leakage import Side, SplitCheck
from edgevis.data.mask_split import split_masks
from edgevis.data.person_split import split_persons

from shared_data import shared_data

# --- what it costs


def test_only_files_of_one_size_are_read_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {"a": b"12345", "b": b"12345", "c": b"54321", "d": b"123", "e": b"7"}.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    files = open_files(tmp_path)
    told: list[tuple[int, int]] = []
    check = SplitCheck(progress=lambda done, total: told.append((done, total)))
    sides = [Side("one", files, ["a.png", "d.png"]), Side("two", files, ["b.png", "c.png", "e.png"])]
    expected = ["1 image with the same bytes in one and two (a.png = b.png)"]
    assert check.shared(sides) == expected
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert check.shared(sides) == expected
    assert len(told) == 4


# --- real data


def split_of_real_data(name: str, check: SplitCheck) -> Any:
    if name in ("grocery", "caltech101"):
        data = shared_data(f"fewshot_{name}", f"{name}_dev.zip")
        return split_classes(data, held_out=0.15, mixed=name == "caltech101", seed=0, check=check)
    if name == "pku":
        return split_persons(shared_data("reid_pku", "pku_reid_dev.zip"), held_out=0.15, seed=0, check=check)
    if name == "ccp":
        return split_masked_classes(
            shared_data("fss_ccp", "ccp_dev.zip"), fold=None, shots=5, size=(65, 65), seed=0, check=check
        )
    data = shared_data(f"boxseg_{name}", f"{name}_dev.zip")
    return split_masks(data, held_out=0.15, from_boxes=True, seed=0, check=check)


@pytest.mark.parametrize("name", ["grocery", "caltech101", "pku", "nuclei", "hippocampus", "ccp"])
def test_real_data_pass(name: str) -> None:
    assert "leakage" not in split_of_real_data(name, SplitCheck()).notes
