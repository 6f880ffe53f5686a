"""Persons that train, query and fill the gallery, and the leakage between them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgevis.data.leakage import SplitCheck
from edgevis.data.person_split import PersonSplit, split_persons
from runtime.errors import InputError

from split_data import ALLOWED, write_image, write_table


def person_rows(cameras: tuple[int, int] = (1, 2)) -> list[list[object]]:
    rows: list[list[object]] = [
        [f"{p}_{c}_{i}.png", p, c, "train"] for p in range(1, 6) for c in cameras for i in range(2)
    ]
    rows += [[f"q{p}.png", p, cameras[0], "query"] for p in (11, 12, 13)]
    return rows + [[f"g{p}.png", p, cameras[1], "gallery"] for p in (11, 12, 13)]


def write_persons(folder: Path, rows: Sequence[Sequence[object]]) -> Path:
    for number, row in enumerate(rows):
        if not (folder / str(row[0])).exists():
            write_image(folder / str(row[0]), number)
    write_table(folder / "labels.csv", [["path", "pid", "camid", "split"], *rows])
    return folder


def persons_of(folder: Path, check: SplitCheck | None = None, held_out: float = 0.4) -> PersonSplit:
    return split_persons(folder, held_out=held_out, seed=0, check=check or SplitCheck())


def test_persons_that_train_and_evaluate(tmp_path: Path) -> None:
    names = {"train": "Training", "query": " PROBE", "gallery": "Gallery"}
    rows = [[*row[:3], names[str(row[3])]] for row in person_rows()]
    found = persons_of(write_persons(tmp_path, rows))
    assert (len(found.train), len(found.query), len(found.gallery), len(found.held)) == (20, 3, 3, 2)
    assert found.notes == {}


@pytest.mark.parametrize("kind", ["one camera", "each person in one", "other persons"])
def test_queries_that_nothing_can_match(kind: str, tmp_path: Path) -> None:
    rows = person_rows((1, 1) if kind == "one camera" else (1, 2))
    if kind == "each person in one":
        rows = [[path, pid, int(pid) % 3, split] for path, pid, _, split in rows]  # type: ignore[call-overload]
    elif kind == "other persons":
        rows = [[path, int(pid) + 50 * (split == "gallery"), cam, split] for path, pid, cam, split in rows]  # type: ignore[call-overload]
    with pytest.raises(InputError, match="none of the 3 queries has a gallery image of its person from another camera"):
        persons_of(write_persons(tmp_path, rows))


def test_some_queries_without_a_match_and_junk_are_counted(tmp_path: Path) -> None:
    rows = [*person_rows(), ["q14.png", 14, 1, "query"], ["j1.png", -1, 2, "gallery"], ["j2.png", -2, 1, "train"]]
    found = persons_of(write_persons(tmp_path, rows))
    assert found.notes == {"queries without a match, not counted": 1, "junk images dropped": 2}
    assert min(found.gallery.ids + found.train.ids) > 0
    rows.append(["single.png", 6, 1, "train"])
    assert persons_of(write_persons(tmp_path, rows)).notes["training persons with one image"] == 1


def test_validation_that_no_second_camera_can_judge_is_left_out(tmp_path: Path) -> None:
    rows = [[path, pid, 1 if split == "train" else cam, split] for path, pid, cam, split in person_rows()]
    assert persons_of(write_persons(tmp_path, rows)).held == frozenset()
    rows = [[*row[:3], "val" if row[1] == 5 else row[3]] for row in rows]
    with pytest.raises(InputError, match="no person of the split val is seen by two cameras"):
        persons_of(write_persons(tmp_path, rows))
    rows = [[*row[:3], "val" if row[1] == 5 else row[3]] for row in person_rows()]
    assert persons_of(write_persons(tmp_path, rows)).held == {5}


@pytest.mark.parametrize("kind", ["person", "file", "copy"])
def test_persons_and_pictures_on_both_sides(kind: str, tmp_path: Path) -> None:
    rows = person_rows()
    if kind == "person":
        rows.append(["new.png", 11, 2, "train"])
    elif kind == "file":
        rows.append(["q11.png", 5, 1, "train"])
    else:
        rows.append(["copy.png", 12, 2, "gallery"])
    write_persons(tmp_path, rows)
    if kind == "copy":
        shutil.copy(tmp_path / "q12.png", tmp_path / "copy.png")
    with pytest.raises(
        InputError, match={"person": "1 person in both train", "file": "1 image in both"}.get(kind, "bytes")
    ):
        persons_of(tmp_path)
    assert persons_of(tmp_path, ALLOWED).notes["leakage"]


def test_a_query_in_the_gallery_under_its_own_camera_is_no_leakage(tmp_path: Path) -> None:
    """The protocol leaves this pair out; under another camera it would always be found."""
    rows = [*person_rows(), ["q11.png", 11, 1, "gallery"]]
    assert persons_of(write_persons(tmp_path, rows)).notes == {}
    with pytest.raises(InputError, match=r"1 image in both query and gallery \(q11\.png\)"):
        persons_of(write_persons(tmp_path, [*rows[:-1], ["q11.png", 11, 2, "gallery"]]))
