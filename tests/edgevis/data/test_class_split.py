"""Classes that train and evaluate: names of splits, rows that decide, and nothing that both sides share."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import pytest

from edgevis.data import read_class_table
from edgevis.data.class_split import ClassSplit, split_classes
from edgevis.data.leakage import SplitCheck
from runtime.errors import InputError, SourceError
from runtime.images.decode import read_image

from split_data import ALLOWED, write_image, write_table


def class_rows(split: Callable[[int, int], str], classes: int = 6, images: int = 4) -> list[list[object]]:
    return [[f"c{c}/{i}.png", f"c{c}", split(c, i)] for c in range(classes) for i in range(images)]


def write_classes(folder: Path, rows: Sequence[Sequence[object]], **options: Any) -> Path:
    for row in rows:
        path = folder / str(row[0])
        if not path.exists():
            write_image(path, len(list(folder.rglob("*.png"))))
    write_table(folder / "labels.csv", [["path", "class_name", "split"], *rows], **options)
    return folder


def split_of(folder: Path, check: SplitCheck | None = None, *, mixed: bool = False) -> ClassSplit:
    return split_classes(folder, held_out=0.0, mixed=mixed, seed=0, check=check or SplitCheck())


def labels(found: ClassSplit, places: Sequence[int]) -> set[str]:
    return {found.images.labels[place] for place in places}


@pytest.mark.parametrize(
    ("train", "other"),
    [("train", "test"), ("Train", "TEST"), (" training ", "Validation"), ("base", "novel"), ("TRN", " val")],
)
def test_names_of_splits_count_in_any_case(train: str, other: str, tmp_path: Path) -> None:
    found = split_of(write_classes(tmp_path, class_rows(lambda c, i: train if c < 4 else other)))
    assert labels(found, found.train) == {"c0", "c1", "c2", "c3"}
    assert labels(found, found.novel) == {"c4", "c5"}
    assert read_class_table(tmp_path, split="val" if "al" in other else other.strip().lower()).classes == ("c4", "c5")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_spreadsheets(separator: str, tmp_path: Path) -> None:
    write_classes(tmp_path, class_rows(lambda c, i: " train" if c < 4 else " test"), separator=separator)
    (tmp_path / "labels.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "labels.csv").read_bytes())
    assert len(split_of(tmp_path).novel) == 8


@pytest.mark.parametrize("unknown", ["", "trian", "fold1", "query"])
def test_unknown_splits_are_listed(unknown: str, tmp_path: Path) -> None:
    write_classes(tmp_path, class_rows(lambda c, i: "train" if c < 4 else unknown if c == 5 else "test"))
    with pytest.raises(SourceError, match=r"unknown splits .*\(4 rows\); known, in any case: train \(training.*test"):
        split_of(tmp_path)


def test_the_column_may_be_spelled_in_any_case_but_not_be_passed_over(tmp_path: Path) -> None:
    write_classes(tmp_path, class_rows(lambda c, i: "train" if c < 4 else "test"))
    table = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(table.replace("path,class_name,split", "Path,Class_Name, SPLIT"))
    assert len(split_of(tmp_path).novel) == 8
    (tmp_path / "labels.csv").write_text(table.replace("split", "subset", 1))
    with pytest.raises(SourceError, match="has the names of splits in its column 'subset'; call it 'split'"):
        split_of(tmp_path)


def test_without_training_rows_nothing_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no row of the split train"):
        split_of(write_classes(tmp_path, class_rows(lambda c, i: "val" if c < 4 else "test")))


def test_rows_decide_and_not_classes(tmp_path: Path) -> None:
    write_classes(tmp_path, class_rows(lambda c, i: "train" if c < 4 or (c, i) == (4, 0) else "test"))
    with pytest.raises(InputError, match=r"1 class in both training and test \(c4\).*--allow-leakage"):
        split_of(tmp_path)
    found = split_of(tmp_path, ALLOWED)
    assert [found.images.labels[i] for i in found.train].count("c4") == 1
    assert [found.images.labels[i] for i in found.novel].count("c4") == 3
    assert found.notes["leakage"] == ["1 class in both training and test (c4)"]


def test_three_splits_train_validate_and_evaluate(tmp_path: Path) -> None:
    rows = class_rows(lambda c, i: "train" if c < 2 else "val" if c < 4 else "test")
    found = split_of(write_classes(tmp_path, rows))
    assert [labels(found, part) for part in (found.train, found.validation, found.novel)] == [
        {"c0", "c1"},
        {"c2", "c3"},
        {"c4", "c5"},
    ]


def test_folders_may_be_splits(tmp_path: Path) -> None:
    for c in range(4):
        for i in range(3):
            write_image(tmp_path / ("Train" if c < 2 else "test") / f"c{c}" / f"{i}.png", 10 * c + i)
    found = split_of(tmp_path)
    assert (labels(found, found.train), labels(found, found.novel)) == ({"c0", "c1"}, {"c2", "c3"})
    write_image(tmp_path / "test" / "c0" / "new.png", 99)
    with pytest.raises(InputError, match=r"1 class in both training and test \(c0\)"):
        split_of(tmp_path)


@pytest.mark.parametrize("way", ["same row", "copy", "other suffix", "zip"])
def test_one_picture_on_both_sides(way: str, tmp_path: Path) -> None:
    folder, rows = tmp_path / "data", class_rows(lambda c, i: "train" if c < 4 else "test")
    write_classes(folder, rows)
    if way == "same row":
        rows.append(["c0/0.png", "c5", "test"])
    elif way == "other suffix":
        cv2.imwrite(str(folder / "c0" / "0.bmp"), read_image(folder / "c0" / "0.png"))
        rows.append(["c0/0.bmp", "c5", "test"])
    else:
        shutil.copy(folder / "c0" / "0.png", folder / "c5" / "copy.png")
        rows.append(["c5/copy.png", "c5", "test"])
    write_classes(folder, rows)
    data = folder
    if way == "zip":
        data = tmp_path / "data.zip"
        with zipfile.ZipFile(data, "w") as archive:
            for path in folder.rglob("*.*"):
                archive.write(path, path.relative_to(folder))
    with pytest.raises(InputError, match=r"1 image (in both|with the same bytes).*c0/0\.(png|bmp)"):
        split_of(data)
    assert len(split_of(data, ALLOWED).notes["leakage"]) == 1  # type: ignore[arg-type]


def test_repeated_images_of_a_class_count_once(tmp_path: Path) -> None:
    """An episode could otherwise ask for an image that it has shown."""
    rows = class_rows(lambda c, i: "train" if c < 4 else "test")
    write_classes(tmp_path, [*rows, rows[-1], ["c5/copy.png", "c5", "test"]])
    shutil.copy(tmp_path / "c5" / "0.png", tmp_path / "c5" / "copy.png")
    found = split_of(tmp_path)
    assert (len(found.novel), found.notes) == (8, {"repeated images left out": 2})


def test_classes_spelled_in_two_ways(tmp_path: Path) -> None:
    rows = [[path, "C1 " if path == "c1/0.png" else name, split] for path, name, split in class_rows(
        lambda c, i: "train" if c < 4 else "test"
    )]  # fmt: skip
    with pytest.raises(InputError, match=r"1 class spelled in two ways \('C1' = 'c1'\)"):
        split_of(write_classes(tmp_path, rows))


def test_one_novel_class_is_no_measure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 classes novel; allowed: 2 or more"):
        split_of(write_classes(tmp_path, class_rows(lambda c, i: "train" if c < 5 else "test")))


def test_a_folder_train_needs_another_beside_it(tmp_path: Path) -> None:
    """An empty folder val is none: nothing is then drawn from what was meant to train."""
    for number in range(8):
        write_image(tmp_path / "data" / "train" / f"c{number // 2}" / f"{number}.png", number)
    (tmp_path / "data" / "val").mkdir()
    with pytest.raises(InputError, match="has pictures in the folder train alone; allowed: others in val or test"):
        split_of(tmp_path / "data")
    found = split_of(tmp_path / "data" / "train")
    assert labels(found, found.novel) < {"c0", "c1", "c2", "c3"}


def test_folders_that_differ_in_case_are_one_class_twice(tmp_path: Path) -> None:
    for number, label in enumerate(("cup", "Cup", "jug", "pot")):
        write_image(tmp_path / label / "0.png", number)
    with pytest.raises(InputError, match=r"1 class spelled in two ways \('Cup' = 'cup'\)"):
        split_of(tmp_path)
