"""Images with masks that train and evaluate, for fixed classes and for few-shot segmentation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis.data.few_shot_split import FewShotSplit, split_masked_classes
from edgevis.data.files import open_files
from edgevis.data.leakage import SplitCheck
from edgevis.data.mask_split import MaskSplit, split_masks
from edgevis.data.masks import read_class_ids
from runtime.errors import InputError, SourceError

from split_data import ALLOWED, write_image, write_table


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


def test_images_without_a_split_need_a_group_or_a_word(tmp_path: Path) -> None:
    """Nothing is drawn image by image unless that is asked for."""
    rows = [{name: row[name] for name in ("stem", "shop")} for row in mask_rows(shop=lambda i: f"shop {i // 2}")]
    write_masks(tmp_path, rows)
    with pytest.raises(InputError, match=r"does not say which images train and which validate.* --split-by image"):
        masks_of(tmp_path)
    for split_by in ("shop", "image"):
        found = masks_of(tmp_path, SplitCheck(split_by=split_by))
        assert found.notes == {"split by": split_by}
        parts = [{place // 2 for place in part} for part in (found.train, found.validation, found.test)]
        assert all(parts)
        whole = sum(map(len, parts)) == len(set().union(*parts))
        assert whole or split_by == "image"
    for split_by, message in (
        ("shelf", "split_by is 'shelf'; allowed for .*: folder, image, stem, shop"),
        ("folder", "split_by is 'folder', but all 12 images of .* lie in one folder"),
    ):
        with pytest.raises(InputError, match=message):
            masks_of(tmp_path, SplitCheck(split_by=split_by))
    with pytest.raises(InputError, match="states its splits: leave --split-by out"):
        masks_of(write_masks(tmp_path / "split", mask_rows()), SplitCheck(split_by="image"))


def test_folders_stay_together(tmp_path: Path) -> None:
    rows = [{"stem": f"{folder}/{index}"} for folder in ("a", "b", "c", "d", "e") for index in range(3)]
    for folder in "abcde":
        (tmp_path / "masks" / folder).mkdir(parents=True)
    found = masks_of(write_masks(tmp_path, rows), SplitCheck(split_by="folder"))
    parts = [{place // 3 for place in part} for part in (found.train, found.validation, found.test)]
    assert sorted(number for part in parts for number in part) == [0, 1, 2, 3, 4]
    assert all(parts)


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


def test_classes_that_are_said_to_be_novel(tmp_path: Path) -> None:
    """Their pixels on training images are ignored, and each side's classes are asked for on its own images."""
    rows = mask_rows(30, split=lambda i: ("train", "val", "test")[i % 3])
    write_masks(tmp_path, rows, classes=5)
    for place in range(30):
        stored = np.full((16, 20), place // 3 % 5 + 1, np.uint8)
        stored[:4] = 2
        stored[4:6] = 255
        cv2.imwrite(str(tmp_path / "masks" / f"s{place:02}.png"), stored)
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["null"]}))
    assert 2 not in shown_of(tmp_path).notes  # without the two lists the seed draws the classes
    (tmp_path / "classes.json").write_text(json.dumps({"novel": [2], "validation": [4]}))
    found = shown_of(tmp_path)
    assert found.validation is not None
    assert [sorted(part.members) for part in (found.train, found.validation, found.test)] == [[1, 3, 5], [4], [2]]
    sides = [
        {int(Path(name).stem[1:]) % 3 for name in part.images} for part in (found.train, found.validation, found.test)
    ]
    assert sides == [{0}, {1}, {2}]
    example = found.train.read(found.train.members[1][0], 1)
    assert (example.ignore.any(1).sum(), example.mask.any(1).sum()) == (6, 10)
    assert found.test.read(found.test.members[2][0], 2).ignore.any(1).sum() == 2
    for wrong in ([0], "2", [255], [True]):
        (tmp_path / "classes.json").write_text(json.dumps({"novel": wrong}))
        with pytest.raises(SourceError, match=r"novel is .*; allowed: a list of class ids, 1 to 254"):
            shown_of(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"novel": [9]}))
    with pytest.raises(InputError, match="0 of the novel ones have 2 images"):
        shown_of(tmp_path)
