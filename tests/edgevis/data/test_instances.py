"""Pixels of objects: label masks, COCO's polygons and run lengths, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevis.data.detection_split import read_detection_images
from edgevis.data.instances import LabelledInstances
from edgevis.data.instances_coco import MAX_VERTICES, decompressed, parse_shape
from runtime.errors import SourceError

from split_data import write_image

SIZE = (6, 8)
CATEGORIES = [{"id": 7, "name": "cup"}, {"id": 3, "name": "person"}]


def instances(folder: Path, *, classes: tuple[str, ...] | None = None) -> LabelledInstances:
    data = read_detection_images(folder)
    return LabelledInstances(data, data.classes if classes is None else classes)


def write_ids(folder: Path, ids: Any, *, dtype: type[np.unsignedinteger[Any]] = np.uint16) -> Path:
    cv2 = pytest.importorskip("cv2")
    table = np.array(ids, dtype)
    write_image(folder / "images/a.png", 0, table.shape)
    (folder / "instances").mkdir()
    cv2.imwrite(str(folder / "instances/a.png"), table)
    return folder


IDS = np.zeros(SIZE, np.uint16)
IDS[1:3, 1:4] = 1
IDS[3:6, 4:8] = 2


def test_label_masks_alone(tmp_path: Path) -> None:
    """Each number is an object of one class, whatever the numbers are."""
    data = instances(write_ids(tmp_path, np.where(IDS == 2, 700, IDS)), classes=("nucleus",))
    found = data[0]
    np.testing.assert_array_equal(found.ids, IDS)
    assert found.classes.tolist() == [0, 0]
    labels, numbers = found.labels()
    assert labels.boxes.tolist() == [[1, 1, 4, 3], [4, 3, 8, 6]]
    assert numbers.tolist() == [1, 2]


def test_label_masks_with_boxes(tmp_path: Path) -> None:
    """The number is the box's; a box without pixels is ignored where nothing else is."""
    boxes = {"a": [[1, 1, 4, 3], [0, 4, 6, 6], [4, 3, 8, 6]]}
    folder = write_ids(tmp_path, np.where(IDS == 2, 3, IDS))
    (folder / "boxes_xyxy.json").write_text(json.dumps(boxes))
    found = instances(folder)[0]
    assert found.ignored.tolist() == [False, True, False]
    assert (found.ids == 3).sum() == 12
    assert found.ids[4, :4].tolist() == [2, 2, 2, 2]
    (folder / "boxes_xyxy.json").write_text(json.dumps({"a": boxes["a"][:2]}))
    with pytest.raises(SourceError, match="instance 3; allowed: up to its 2"):
        instances(folder)[0]


def test_label_masks_with_a_table(tmp_path: Path) -> None:
    """Annotations name their numbers and categories; other categories are left out."""
    folder = write_ids(tmp_path, np.where(IDS == 2, 9, IDS))
    items = [
        {"category_id": 7, "box_xyxy": [4, 3, 8, 6], "instance": 9},
        {"category_id": 3, "box_xyxy": [1, 1, 4, 3], "instance": 1, "iscrowd": 1},
    ]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"categories": CATEGORIES, "images": {"a": items}}))
    found = instances(folder)[0]
    assert found.classes.tolist() == [1, 0]
    assert found.ignored.tolist() == [False, True]
    assert (found.ids == 1).sum() == 12
    cups = instances(folder, classes=("cup",))[0]
    assert cups.classes.tolist() == [0]
    assert np.unique(cups.ids).tolist() == [0, 1]
    path.write_text(json.dumps({"categories": CATEGORIES, "images": {"a": [items[0], {**items[1], "instance": 9}]}}))
    with pytest.raises(SourceError, match="instance 9; allowed"):
        instances(folder)


def write_coco(folder: Path, *shapes: object, crowd: int = 0) -> Path:
    write_image(folder / "images/a.png", 0, SIZE)
    annotations = [
        {"id": n, "image_id": 5, "category_id": 7, "bbox": [1, 1, 3, 2], "iscrowd": crowd, "segmentation": shape}
        for n, shape in enumerate(shapes)
    ]
    data = {"images": [{"id": 5, "file_name": "a.png"}], "annotations": annotations, "categories": CATEGORIES}
    (folder / "instances_train.json").write_text(json.dumps(data))
    return folder


def test_polygons_and_run_lengths(tmp_path: Path) -> None:
    """The smaller object has the pixels that two share."""
    pixels = (IDS == 2).T.ravel()
    starts = np.flatnonzero(np.diff(np.append(False, pixels)))
    runs = np.diff([0, *starts.tolist(), pixels.size]).tolist()
    square = [[1, 1, 4, 1, 4, 3, 1, 3], [0, 5, 1, 5, 1, 6, 0, 6]]
    whole = [[0, 0, 8, 0, 8, 6, 0, 6]]
    found = instances(write_coco(tmp_path, square, whole, {"size": list(SIZE), "counts": runs}))[0]
    expected = np.where(IDS == 2, 3, np.where(IDS == 1, 1, 2))
    expected[5, 0] = 1
    np.testing.assert_array_equal(found.ids, expected)


def test_compressed_run_lengths_are_pycocotools(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for side in (3, 40, 300):
        mask = random.random((side, side + 1)) < (0.5 if side < 100 else 0.001)
        packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = decompressed(packed["counts"].decode(), "a")
        values = np.repeat(np.arange(len(counts)) % 2, counts)
        np.testing.assert_array_equal(values.reshape(mask.shape[::-1]).T, mask)


@pytest.mark.parametrize(
    "shape",
    [
        "text",
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1.0, 2.0] * (MAX_VERTICES + 1)],
        {"size": [6, 8]},
        {"size": [6, -8], "counts": [48]},
        {"size": [6, 8], "counts": [-1, 49]},
        {"size": [6, 8, 1], "counts": [48]},
    ],
)
def test_shapes_that_are_none_are_refused(shape: object) -> None:
    with pytest.raises(SourceError, match=r"a\.json"):
        parse_shape(shape, "a.json")


@pytest.mark.parametrize("text", ["\x00", "é", "ooooooooooo", "o", "0O"])
def test_text_that_is_no_run_lengths_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match="compressed text"):
        decompressed(text, "a.json")


def test_run_lengths_of_another_size_are_refused(tmp_path: Path) -> None:
    for number, shape in enumerate(({"size": [6, 8], "counts": [40]}, {"size": [8, 6], "counts": [48]})):
        with pytest.raises(SourceError, match="run lengths are of"):
            instances(write_coco(tmp_path / str(number), shape))[0]


def test_boxes_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has boxes, but no masks"):
        instances(write_coco(tmp_path, None, []))


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("boxes_xyxy.json", {"a": [[1, 1, 4, 3]]}),
        (
            "annotations.json",
            {"categories": CATEGORIES, "images": {"a": [{"category_id": 7, "box_xyxy": [1, 1, 4, 3]}]}},
        ),
    ],
)
def test_tables_of_boxes_alone_are_refused(table: str, content: dict[str, Any], tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png", 0, SIZE)
    (tmp_path / table).write_text(json.dumps(content))
    (tmp_path / "index.csv").write_text("stem\na\n")
    with pytest.raises(SourceError, match="has boxes, but no masks"):
        instances(tmp_path)
