"""What trains and what evaluates: names of splits, rows that decide, and nothing that both sides share."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgevis.data import read_class_table
from edgevis.data.class_split import ClassSplit, split_classes
from edgevis.data.few_shot_split import FewShotSplit, split_masked_classes
from edgevis.data.files import open_files
from edgevis.data.leakage import Side, SplitCheck
from edgevis.data.mask_split import MaskSplit, split_masks
from edgevis.data.masks import read_class_ids
from edgevis.data.person_split import PersonSplit, split_persons
from runtime.errors import InputError, SourceError
from runtime.images.decode import read_image

from shared_data import shared_data

ALLOWED = SplitCheck(allow_leakage=True)


def write_image(path: Path, seed: int, size: tuple[int, int] = (8, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def write_table(path: Path, rows: Sequence[Sequence[object]], separator: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)


# --- classes


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


# --- persons


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


# --- masks


def write_masks(
    folder: Path, rows: Sequence[Mapping[str, str]], *, index: bool = True, boxes: bool = False, classes: int = 1
) -> Path:
    table = {}
    for number, row in enumerate(rows):
        stem = row["stem"]
        write_image(folder / "images" / f"{stem}.png", number, (16, 20))
        mask = np.zeros((16, 20), np.uint16 if boxes else np.uint8)
        mask[4:10, 4:12] = 1 + number % classes
        path = folder / ("instances" if boxes else "masks") / f"{stem}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), mask)
        table[stem] = [[4, 4, 12, 10]]
    if boxes:
        (folder / "boxes_xyxy.json").write_text(json.dumps(table))
    if index:
        write_table(folder / "index.csv", [list(rows[0]), *[list(row.values()) for row in rows]])
    return folder


def mask_rows(count: int = 12, **columns: Callable[[int], str]) -> list[dict[str, str]]:
    columns.setdefault("split", lambda i: "train" if i < 8 else "val")
    return [{"stem": f"s{i:02}", **{name: value(i) for name, value in columns.items()}} for i in range(count)]


def masks_of(folder: Path, check: SplitCheck | None = None, *, from_boxes: bool = False) -> MaskSplit:
    return split_masks(folder, held_out=0.25, from_boxes=from_boxes, seed=0, check=check or SplitCheck())


def test_images_that_train_validate_and_evaluate(tmp_path: Path) -> None:
    two = masks_of(write_masks(tmp_path / "2", mask_rows(split=lambda i: " Train" if i < 8 else "VALIDATION")))
    assert [len(part) for part in (two.train, two.validation, two.test)] == [6, 2, 4]
    three = masks_of(
        write_masks(tmp_path / "3", mask_rows(split=lambda i: "train" if i < 6 else "val" if i < 9 else "test"))
    )
    assert (three.train, three.validation, three.test) == (tuple(range(6)), (6, 7, 8), (9, 10, 11))
    with pytest.raises(SourceError, match=r"unknown splits 'tset' \(4 rows\)"):
        masks_of(write_masks(tmp_path / "4", mask_rows(split=lambda i: "train" if i < 8 else "tset")))


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("column", ["volume", "patient", "Stem"])
def test_volumes_patients_and_stems_on_both_sides(column: str, boxes: bool, tmp_path: Path) -> None:
    rows = mask_rows(12, **{column: lambda i: f"V{i // 3}" if i % 2 else f"v{i // 3}"})
    expected = rf"1 {column} in both train and val \(v2\)"
    if column == "Stem":
        rows, expected = [*mask_rows(), {"stem": "s00", "split": "val"}], r"1 image in both train and val \(images/s00"
    write_masks(tmp_path, rows, boxes=boxes)
    with pytest.raises(InputError, match=f"(?i){expected}"):
        masks_of(tmp_path, from_boxes=boxes)
    assert masks_of(tmp_path, ALLOWED, from_boxes=boxes).notes["leakage"]


def test_repeated_rows_count_once(tmp_path: Path) -> None:
    rows = mask_rows()
    found = masks_of(write_masks(tmp_path, [*rows, rows[0], rows[-1]]))
    assert (len(found.train) + len(found.validation), len(found.test)) == (8, 4)
    assert found.notes == {"repeated rows left out": 2}


def test_copies_and_volumes_are_drawn_as_a_whole(tmp_path: Path) -> None:
    rows = [{name: row[name] for name in ("stem", "volume")} for row in mask_rows(volume=lambda i: f"v{i // 3}")]
    write_masks(tmp_path, rows)
    shutil.copy(tmp_path / "images" / "s00.png", tmp_path / "images" / "s11.png")  # joins the first and the last
    for seed in range(6):
        found = split_masks(tmp_path, held_out=0.34, from_boxes=False, seed=seed, check=SplitCheck())
        parts = [{place // 3 % 3 for place in part} for part in (found.train, found.validation, found.test)]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 3


def test_blank_slices_are_no_leakage(tmp_path: Path) -> None:
    write_masks(tmp_path, mask_rows(volume=lambda i: f"v{i // 4}"))
    for place in (0, 5, 11):
        cv2.imwrite(str(tmp_path / "images" / f"s{place:02}.png"), np.zeros((16, 20), np.uint8))
    assert masks_of(tmp_path).notes == {}
    shutil.copy(tmp_path / "images" / "s01.png", tmp_path / "images" / "s10.png")
    with pytest.raises(InputError, match=r"same bytes in train and val \(images/s01\.png = images/s10"):
        masks_of(tmp_path)


def test_boxes_beyond_their_image_are_named_before_training(tmp_path: Path) -> None:
    write_masks(tmp_path, mask_rows(), boxes=True)
    table = json.loads((tmp_path / "boxes_xyxy.json").read_text())
    table["s11"] = [[0, 0, 20, 16], [5, 5, 21, 8]]
    (tmp_path / "boxes_xyxy.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"1 image: images/s11\.png has 20x16 pixels and the box \[5, 5, 21, 8\]"):
        masks_of(tmp_path, from_boxes=True)


def test_data_without_an_object(tmp_path: Path) -> None:
    write_masks(tmp_path, mask_rows())
    for place in range(8, 12):
        cv2.imwrite(str(tmp_path / "masks" / f"s{place:02}.png"), np.zeros((16, 20), np.uint8))
    with pytest.raises(InputError, match=r"no mask of the images .* that evaluate shows an object"):
        masks_of(tmp_path)
    shutil.copytree(tmp_path / "masks", tmp_path / "instances")
    (tmp_path / "boxes_xyxy.json").write_text(json.dumps({f"s{i:02}": [] for i in range(12)}))
    with pytest.raises(InputError, match="no box of the training images"):
        masks_of(tmp_path, from_boxes=True)


# --- few-shot segmentation


def shown_of(folder: Path, check: SplitCheck | None = None, shots: int = 1) -> FewShotSplit:
    return split_masked_classes(folder, fold=None, shots=shots, size=(9, 9), seed=0, check=check or SplitCheck())


def test_masked_classes_with_an_index(tmp_path: Path) -> None:
    rows = mask_rows(30, split=lambda i: "Train" if i < 18 else "Test")
    found = shown_of(write_masks(tmp_path, rows, classes=5))
    assert len(found.test.members) == 1
    assert not set(found.train.members) & set(found.test.members)
    assert not set(found.train.images) & set(found.test.images)
    write_masks(tmp_path, [*rows, {"stem": "s00", "split": "test"}], classes=5)
    with pytest.raises(InputError, match="1 image in both train and test"):
        shown_of(tmp_path)


def test_an_image_of_a_novel_class_does_not_train_where_nothing_divides_them(tmp_path: Path) -> None:
    write_masks(tmp_path, mask_rows(30), classes=5, index=False)
    both = read_class_ids(open_files(tmp_path), "masks/s00.png")
    found = shown_of(tmp_path)
    (novel,) = found.test.members
    for place in range(5):  # these show a training class, too
        stored = both.copy()
        stored[:4] = novel
        cv2.imwrite(str(tmp_path / "masks" / f"s{place:02}.png"), stored)
    found = shown_of(tmp_path)
    assert not set(found.train.images) & set(found.test.images)
    assert {f"images/s{place:02}.png" for place in range(5)} <= set(found.test.images)


def test_small_masked_classes_are_named(tmp_path: Path) -> None:
    write_masks(tmp_path, mask_rows(30), classes=5, index=False)
    odd = np.zeros((16, 20), np.uint8)
    odd[:8] = 9
    cv2.imwrite(str(tmp_path / "masks" / "s07.png"), odd)
    found = shown_of(tmp_path, shots=2)
    assert found.notes["too small classes left out"] == ["class 9 (1 images; 2-shot needs 3)"]
    with pytest.raises(InputError, match=r"0 classes of which 21 or more images .*too small are class 1 \("):
        shown_of(tmp_path, shots=20)


def test_an_object_is_small_by_its_own_image(tmp_path: Path) -> None:
    """Not by the first: a photograph of 2000 x 2000 would ask 40 000 pixels of every other mask."""
    write_masks(tmp_path, mask_rows(30), classes=5, index=False)
    write_image(tmp_path / "images" / "s00.png", 77, (400, 400))
    mask = np.zeros((400, 400), np.uint8)
    mask[:200] = 1
    cv2.imwrite(str(tmp_path / "masks" / "s00.png"), mask)
    assert sum(map(len, shown_of(tmp_path).train.members.values())) >= 18


def test_class_folders_share_no_picture(tmp_path: Path) -> None:
    for c in range(6):
        for i in range(3):
            write_image(tmp_path / f"c{c}" / f"{i}.jpg", 10 * c + i)
            cv2.imwrite(str(tmp_path / f"c{c}" / f"{i}.png"), np.full((8, 10), 255, np.uint8))
    found = shown_of(tmp_path)
    novel, trained = found.test.images[0], found.train.images[0]
    shutil.copy(tmp_path / trained, tmp_path / novel)
    with pytest.raises(InputError, match="1 image with the same bytes in training and test"):
        shown_of(tmp_path)
    shutil.rmtree(tmp_path / "c0")
    write_image(tmp_path / "c0" / "0.jpg", 500)
    cv2.imwrite(str(tmp_path / "c0" / "0.png"), np.full((8, 10), 255, np.uint8))
    assert shown_of(tmp_path, ALLOWED).notes["too small classes left out"] == ["c0 (1 images; 1-shot needs 2)"]


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
