"""Readers of detection data: COCO's JSON, PASCAL VOC's folders, tables, and what they refuse."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgevis.data.detection import DetectionImages, chosen_classes
from edgevis.data.detection_split import read_detection_images, split_detection
from edgevis.data.leakage import SplitCheck
from runtime.errors import InputError, SourceError

from shared_data import shared_data
from split_data import write_image, write_table

SIZE = (30, 40)
CATEGORIES = [{"id": 7, "name": "cup"}, {"id": 3, "name": "person"}]
BOX = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [4, 3, 10.5, 20], "iscrowd": 0, "area": 210}


def coco(*boxes: Mapping[str, Any], images: int = 1, first: int = 5) -> dict[str, Any]:
    pictures = [{"id": first + n, "file_name": f"{first + n}.png", "width": 40, "height": 30} for n in range(images)]
    return {"images": pictures, "annotations": list(boxes), "categories": CATEGORIES}


def write_coco(folder: Path, data: object, name: str = "annotations/instances.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    for image in data["images"] if isinstance(data, dict) and isinstance(data.get("images"), list) else ():
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            write_image(folder / "images" / Path(image["file_name"]).name, image["id"], SIZE)
    return folder


def read(folder: Path) -> DetectionImages:
    return read_detection_images(folder)


def test_coco(tmp_path: Path) -> None:
    """Category ids have holes and any order; a crowd is ignored; an image without boxes stays."""
    crowd = {**BOX, "category_id": 3, "iscrowd": 1, "bbox": [0, 0, 40, 30]}
    data = read(write_coco(tmp_path, coco(BOX, crowd, images=2)))
    assert data.classes == ("person", "cup")
    assert data.names == ("images/5.png", "images/6.png")
    assert data.roles is None
    image, labels = data[0]
    assert image.shape == (*SIZE, 3)
    assert labels.boxes.tolist() == [[4, 3, 14.5, 23], [0, 0, 40, 30]]
    assert labels.classes.tolist() == [1, 0]
    assert labels.ignored.tolist() == [False, True]
    assert labels.weights.tolist() == [1, 1]
    assert labels.objects == 1
    assert len(data[1][1]) == 0


@pytest.mark.parametrize(
    "names",
    [
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
        ("a_train.json", "my_validation.json"),
    ],
)
def test_coco_splits_by_the_names_of_the_files(names: tuple[str, str], tmp_path: Path) -> None:
    write_coco(tmp_path, coco(BOX, images=2), names[0])
    write_coco(tmp_path, coco({**BOX, "image_id": 8}, first=8), names[1])
    if names[0].startswith("annotations"):
        write_coco(tmp_path, {"images": [], "annotations": [], "categories": []}, "annotations/captions_train2017.json")
    data = read(tmp_path)
    assert data.roles == ("train", "train", "val")
    split = split_detection(tmp_path, classes="cup", where="", held_out=0, seed=0, check=SplitCheck())
    assert (split.train, split.validation, split.test) == ((0, 1), (), (2,))


def test_coco_in_a_zip(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data", coco(BOX))
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(folder))
    assert read(path)[0][1].boxes.shape == (1, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not COCO's format"),
        ({"annotations": {}}, "annotations is not a list of objects"),
        ({"categories": []}, "1 to 1000, each id and name once"),
        ({"categories": [CATEGORIES[0]] * 2}, "each id and name once"),
        ({"categories": [{"id": 7, "name": "cup"}, {"id": 7, "name": "mug"}]}, "each id and name once"),
        ({"categories": [{"id": 7}]}, "a category has no name"),
        ({"images": [{"id": 5, "file_name": "5.png"}] * 2}, "two images have the id 5"),
        ({"images": [{"id": 5, "file_name": "../5.png"}]}, "could lead out of the data"),
        ({"images": [{"id": 5, "file_name": 5}]}, "has the file_name 5"),
        (
            {"images": [{"id": 5, "file_name": "absent.png"}]},
            "'absent.png'; of that name there are none",
        ),
        ({"images": [{"id": True, "file_name": "5.png"}]}, "id is True"),
        ({"annotations": [{**BOX, "image_id": 9}]}, "the image_id 9, which the file does not list"),
        ({"annotations": [{**BOX, "category_id": 1}]}, "the category_id 1, which"),
        ({"annotations": [{**BOX, "bbox": [0, 0, 5]}]}, r"the bbox \[0, 0, 5\]"),
        ({"annotations": [{**BOX, "bbox": [0, 0, -1, 5]}]}, "sides of 0 or more"),
        ({"annotations": [{**BOX, "bbox": [0, 0, 1e9, 5]}]}, "the bbox"),
        ({"annotations": [{**BOX, "score": 2}]}, "the score 2"),
        ({"annotations": [{**BOX, "iscrowd": "no"}]}, "iscrowd 'no'"),
        ({"annotations": [BOX] * 10_001}, "10001 boxes; allowed: 10000"),
    ],
)
def test_coco_that_lies_is_refused(change: object, message: str, tmp_path: Path) -> None:
    data = change if isinstance(change, str) else {**coco(BOX), **change}
    write_image(tmp_path / "images" / "5.png", 5, SIZE)
    (tmp_path / "annotations.json").write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(SourceError, match=message):
        read(tmp_path)


def test_coco_whose_split_or_image_is_not_clear(tmp_path: Path) -> None:
    write_coco(tmp_path, coco(BOX), "annotations/a.json")
    write_coco(tmp_path, coco(BOX), "annotations/train.json")
    with pytest.raises(SourceError, match=r"a\.json does not say its split"):
        read(tmp_path)
    other = write_coco(tmp_path / "other", coco(BOX))
    (other / "images" / "5.png").unlink()
    for folder in ("a", "b"):
        write_image(other / folder / "5.png", 1, SIZE)
    with pytest.raises(SourceError, match=r"there are several: a/5\.png, b/5\.png"):
        read(other)


def test_boxes_of_another_size_are_refused_and_slight_excess_is_clipped(tmp_path: Path) -> None:
    slight = read(
        write_coco(tmp_path / "slight", coco({**BOX, "bbox": [-1, 0, 42, 31]}, {**BOX, "bbox": [4, 4, 0, 3]}))
    )
    assert slight[0][1].boxes.tolist() == [[0, 0, 40, 30]]
    with pytest.raises(SourceError, match=r"is 40x30; a box reaches beyond it by 20 pixels"):
        read(write_coco(tmp_path / "far", coco({**BOX, "bbox": [10, 0, 50, 20]})))[0]


VOC = """<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height></size>
<object><name>person</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>40</xmax><ymax>30</ymax>
</bndbox><part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part></object>
<object><name>cat</name><difficult>1</difficult><bndbox><ymax>9</ymax><xmin>3.5</xmin><ymin>3</ymin><xmax>8</xmax>
</bndbox></object></annotation>"""


def write_voc(folder: Path, text: str = VOC, stems: str = "a") -> Path:
    for number, stem in enumerate(stems):
        write_image(folder / "JPEGImages" / f"{stem}.jpg", number, SIZE)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{stem}.xml").write_text(text)
    return folder


def test_voc(tmp_path: Path) -> None:
    """Pixels count from 1 with the end included; parts are no objects; difficult ones are ignored."""
    data = read(write_voc(tmp_path, stems="ab"))
    assert data.classes == ("cat", "person")
    assert data.roles is None
    _, labels = data[0]
    assert labels.boxes.tolist() == [[0, 1, 40, 30], [2.5, 2, 8, 9]]
    assert labels.classes.tolist() == [1, 0]
    assert labels.ignored.tolist() == [False, True]
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("b\n")
    (lists / "test.txt").write_text("a\n\n")
    data = read(tmp_path)
    assert data.names == ("JPEGImages/b.jpg", "JPEGImages/a.jpg")
    assert data.roles == ("train", "test")
    (lists / "test.txt").write_text("c\n")
    with pytest.raises(SourceError, match=r"has no Annotations/c\.xml"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "is not XML"),
        ("", "is not XML"),
        ("<other/>", "is a <other>"),
        ("<annotation><object><name>x</name></object></annotation>", "without a name or bndbox"),
        (VOC.replace("<xmin>1<", "<xmin>left<"), "has xmin 'left'"),
        (VOC.replace("<xmin>1<", "<xmin>nan<"), "has xmin 'nan'"),
        (VOC.replace("<xmax>40<", "<xmax>0<"), "whose end is before its start"),
        (f"<!DOCTYPE a [<!ENTITY b 'c'>]>{VOC}", "declares a document type"),
        (f"<!DOCTYPE a SYSTEM 'file:///etc/passwd'>{VOC}", "declares a document type"),
        ("<a>" * 20 + "</a>" * 20, "nested more than 16 deep"),
        (f"<annotation>{'x' * (4 << 20)}</annotation>", "at most 4194304 are read"),
        ("<annotation></annotation>", "has 0 classes"),
    ],
)
def test_voc_that_lies_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        read(write_voc(tmp_path, text))


def test_tables(tmp_path: Path) -> None:
    """A sample of COCO by stems, boxes of instances, boxes around masks; the only class has the name asked for."""
    for stem in "ab":
        write_image(tmp_path / "images" / f"{stem}.png", 1, SIZE)
    write_table(tmp_path / "index.csv", [("stem", "coco_split", "ok"), ("a", "train2017", 1), ("b", "val2017", 0)])
    box = {"category_id": 3, "box_xyxy": [1, 2, 3.5, 4], "iscrowd": 0}
    sample = {"categories": CATEGORIES, "images": {"a": [box], "b": [{**box, "iscrowd": 1}, box]}}
    (tmp_path / "annotations.json").write_text(json.dumps(sample))
    data = read(tmp_path)
    assert (data.roles, data.classes) == (("train", "test"), ("person", "cup"))
    assert data[1][1].ignored.tolist() == [True, False]
    assert data[0][1].boxes.tolist() == [[1, 2, 3.5, 4]]
    split = split_detection(
        tmp_path, classes="person", where="ok=1", held_out=0, seed=0, check=SplitCheck(allow_leakage=True)
    )
    assert split.train == (0,)
    for where in ("ok", "absent=1"):
        with pytest.raises(InputError, match=r"of the columns of index\.csv: stem, coco_split, ok"):
            split_detection(tmp_path, classes="", where=where, held_out=0, seed=0, check=SplitCheck(allow_leakage=True))
    (tmp_path / "annotations.json").unlink()
    (tmp_path / "boxes_xyxy.json").write_text(json.dumps({"a": [[0, 0, 4, 5]], "b": []}))
    data = chosen_classes(read(tmp_path), "nucleus")
    assert (data.classes, data[0][1].boxes.tolist()) == (("nucleus",), [[0, 0, 4, 5]])
    (tmp_path / "boxes_xyxy.json").unlink()
    for stem, value in (("a", 255), ("b", 0)):
        mask = np.zeros(SIZE, np.uint8)
        mask[3:6, 10:20] = value
        (tmp_path / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "masks" / f"{stem}.png"), mask)
    data = read(tmp_path)
    assert (data.classes, data[0][1].boxes.tolist(), len(data[1][1])) == (("object",), [[10, 3, 20, 6]], 0)


def test_classes_are_chosen_and_numbered_in_the_order_asked_for(tmp_path: Path) -> None:
    data = read(write_coco(tmp_path, coco(BOX, {**BOX, "category_id": 3})))
    assert chosen_classes(data, "") is data
    only = chosen_classes(data, "cup")
    assert (only.classes, only.labels[0].classes.tolist()) == (("cup",), [0])
    both = chosen_classes(data, "cup, person")
    assert (both.classes, both.labels[0].classes.tolist()) == (("cup", "person"), [0, 1])
    for wanted, message in (("dog", "'dog', which is no class"), ("cup,cup", "different names"), ("cup,", "different")):
        with pytest.raises(InputError, match=message):
            chosen_classes(data, wanted)


def test_splits_share_no_copy_and_have_objects(tmp_path: Path) -> None:
    write_coco(tmp_path, coco(BOX), "train.json")
    write_coco(tmp_path, coco({**BOX, "image_id": 8}, first=8), "val.json")
    arguments: dict[str, Any] = {"where": "", "held_out": 0, "seed": 0}
    with pytest.raises(InputError, match="none of the 1 training images has a box of person"):
        split_detection(tmp_path, classes="person", check=SplitCheck(), **arguments)
    (tmp_path / "images" / "8.png").write_bytes((tmp_path / "images" / "5.png").read_bytes())
    with pytest.raises(InputError, match="1 image with the same bytes in train and val"):
        split_detection(tmp_path, classes="", check=SplitCheck(), **arguments)


def test_unknown_layouts_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 1)
    with pytest.raises(SourceError, match="has no boxes in a known layout; allowed: COCO's JSON"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("path", "classes", "images", "boxes"),
    [
        ("detect_coco/coco_sample_dev.zip", "person", 70, 211),
        ("boxseg_nuclei/nuclei_dev.zip", "nucleus", 60, 1751),
        ("fss_ccp/ccp_dev.zip", "person", 160, 160),
    ],
)
def test_real_data(path: str, classes: str, images: int, boxes: int) -> None:
    """Numbers of images and boxes that evaluate, as the data's descriptions state them."""
    split = split_detection(
        shared_data(*path.split("/")), classes=classes, where="", held_out=0.1, seed=0, check=SplitCheck()
    )
    assert len(split.test) == images
    labels = [split.data[place][1] for place in split.test]
    ignored = sum(int(part.ignored.sum()) for part in labels)
    assert sum(part.objects for part in labels) == boxes
    assert split.validation
    assert ignored == sum(len(part) for part in labels) - boxes
