"""Readers of labelled images, persons and masks, on small sets made here and on real ones where they are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis.data import (
    boxes_from_instances,
    read_class_folders,
    read_class_table,
    read_instances,
    read_market1501,
    read_masked_images,
    read_pku_reid,
)
from runtime.errors import InputError, SourceError

from shared_data import shared_data


def _picture(value: int, size: tuple[int, int] = (6, 8)) -> bytes:
    return bytes(cv2.imencode(".png", np.full((*size, 3), value, np.uint8))[1])


def _mask(mask: object) -> bytes:
    return bytes(cv2.imencode(".png", np.asarray(mask))[1])


def _write(folder: Path, content: dict[str, bytes | str]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def test_class_folders(tmp_path: Path) -> None:
    pictures: dict[str, bytes | str] = {
        f"train/{name}/{n}.png": _picture(10 * n) for name in ("cat", "dog") for n in range(3)
    }
    data = read_class_folders(
        _write(tmp_path, pictures | {"train/readme.txt": "no image", "val/cat/9.png": b""}), inside="train"
    )
    assert len(data) == 6
    assert data.classes == ("cat", "dog")
    assert data.labels == ("cat",) * 3 + ("dog",) * 3
    image, target = data[5]
    assert (image.shape, int(image[0, 0, 0]), target) == ((6, 8, 3), 20, 1)
    assert [target for _, target in data] == [0, 0, 0, 1, 1, 1]  # type: ignore[attr-defined]  # by its __getitem__


def test_folders_in_folders_give_the_whole_path_from_where_they_differ(tmp_path: Path) -> None:
    names = ("all/Greek/character01/a.png", "all/Greek/character02/a.png", "all/Latin/character01/a.png")
    data = read_class_folders(_write(tmp_path, dict.fromkeys(names, b"")))
    assert data.labels == ("Greek/character01", "Greek/character02", "Latin/character01")
    one = read_class_folders(_write(tmp_path / "one", {"images/cat/1.png": b"", "images/cat/2.png": b""}))
    assert one.classes == ("cat",)


def test_wrong_class_folders(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        read_class_folders(tmp_path / "none")
    with pytest.raises(SourceError, match="holds no images"):
        read_class_folders(_write(tmp_path / "text", {"cat/a.txt": ""}))
    with pytest.raises(SourceError, match=r"stray\.png in .* lies in no class folder"):
        read_class_folders(_write(tmp_path / "stray", {"cat/a.png": b"", "stray.png": b""}))
    damaged = read_class_folders(_write(tmp_path / "damaged", {"cat/a.png": b"no picture"}))
    with pytest.raises(SourceError, match=r"cat/a\.png in .* not an image"):
        damaged[0]


def test_class_tables(tmp_path: Path) -> None:
    table = "path,class_name,split\nb.png,cat,val\na.png,dog,base\n"
    data = read_class_table(_write(tmp_path, {"labels.csv": table, "a.png": _picture(1), "b.png": _picture(2)}))
    assert (data.names, data.labels, data.targets) == (("b.png", "a.png"), ("cat", "dog"), (0, 1))
    assert read_class_table(tmp_path, split="base").labels == ("dog",)
    for changed, message in (
        (table + "../a.png,cat,val\n", r"no file \.\./a\.png, which labels\.csv lists"),
        (table + "a.png,,val\n", r"gives a\.png no class_name"),
        (table + "a.png,cat\n", "line 4 of .* 2 columns"),
        (table.replace("class_name", "class"), "no column 'class_name'"),
    ):
        _write(tmp_path, {"labels.csv": changed})
        with pytest.raises(SourceError, match=message):
            read_class_table(tmp_path)
    _write(tmp_path, {"labels.csv": table})
    with pytest.raises(SourceError, match="no row of split 'test'; its splits are base, val"):
        read_class_table(tmp_path, split="test")


def test_market1501(tmp_path: Path) -> None:
    names = (
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/-1_c1s1_000401_03.jpg",
        "bounding_box_test/0000_c3s2_000401_03.jpg",
        "bounding_box_test/0001_c6s3_000401_03.jpg",
        "bounding_box_test/Thumbs.db",
    )
    folder = _write(tmp_path, {f"Market-1501/{name}": _picture(1) for name in names})
    gallery = read_market1501(folder, "gallery", inside="Market-1501")
    assert (gallery.ids, gallery.cameras) == ((0, 1), (3, 6)), "junk is dropped, a distractor is kept"
    train = read_market1501(folder / "Market-1501", "train")
    image, identity, camera = train[0]
    assert (image.shape, identity, camera) == ((6, 8, 3), 2, 1)
    assert read_market1501(folder / "Market-1501", "query").ids == (1,)


def test_wrong_market1501(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="part is 'test'; allowed: train, query, gallery"):
        read_market1501(tmp_path, "test")  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="no folder query with files"):
        read_market1501(_write(tmp_path / "a", {"bounding_box_train/0001_c1s1_1_0.jpg": b""}), "query")
    with pytest.raises(SourceError, match=r"alice\.jpg in .* is not named like 0002_c1s1"):
        read_market1501(_write(tmp_path / "b", {"query/alice.jpg": b""}), "query")
    with pytest.raises(SourceError, match="no images of persons in query"):
        read_market1501(_write(tmp_path / "c", {"query/-1_c1s1_1_0.jpg": b""}), "query")


@pytest.mark.parametrize("number", ["nan", "1.5", "", "9" * 30])
def test_wrong_numbers_of_persons(tmp_path: Path, number: str) -> None:
    _write(tmp_path, {"labels.csv": f"path,pid,camid,split\na.png,{number},1,query\n", "a.png": b""})
    with pytest.raises(SourceError, match=r"pid of a\.png in .* a whole number is needed"):
        read_pku_reid(tmp_path)


def test_real_persons() -> None:
    path = shared_data("reid_pku", "pku_reid_dev.zip")
    counts = {split: len(read_pku_reid(path, split)) for split in ("train", "query", "gallery")}
    assert counts == {"train": 34 * 16, "query": 160, "gallery": 160}
    query = read_pku_reid(path, "query")
    assert len(set(query.ids)) == 20
    assert set(query.cameras) == {1}
    image, identity, camera = query[0]
    assert (image.shape, identity, camera) == ((128, 48, 3), 1, 1)


def test_real_class_folders() -> None:
    data = read_class_folders(shared_data("fewshot_omniglot", "omniglot_background.zip"))
    assert (len(data), len(data.classes)) == (19280, 964)
    assert set(Counter(data.labels).values()) == {20}
    assert data.classes[0] == "Alphabet_of_the_Magi/character01"
    image, target = data[0]
    assert (image.shape, target) == ((105, 105, 3), 0)
    assert set(np.unique(image)) == {0, 255}


def test_real_class_tables() -> None:
    path = shared_data("fewshot_grocery", "grocery_dev.zip")
    assert len(read_class_table(path)) == 1220
    assert len(read_class_table(path, split="base").classes) == 41
    assert len(read_class_table(path, label="coarse_name", split="val").classes) < 20


def test_masked_images(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 255], [2, 0, 0]], np.uint8)
    content = {f"images/{stem}.png": _picture(9, (2, 3)) for stem in "ba"} | {
        f"masks/{stem}.png": _mask(mask) for stem in "ba"
    }
    data = read_masked_images(_write(tmp_path, content))
    assert data.stems == data.volumes == ("a", "b")
    image, found = data[0]
    assert image.shape == (2, 3, 3)
    np.testing.assert_array_equal(found, mask)
    _write(tmp_path, {"index.csv": "stem,volume,split\nb,v1,train\na,v2,val\n"})
    assert read_masked_images(tmp_path, split="val").volumes == ("v2",)


def test_wrong_masked_images(tmp_path: Path) -> None:
    mask = _mask(np.zeros((2, 3), np.uint8))
    with pytest.raises(SourceError, match="no folder images"):
        read_masked_images(_write(tmp_path / "0", {"masks/a.png": mask}))
    with pytest.raises(SourceError, match=r"no masks/b\.\*; each image needs it"):
        read_masked_images(_write(tmp_path / "1", {"images/a.png": b"", "images/b.png": b"", "masks/a.png": mask}))
    with pytest.raises(SourceError, match=r"both images/a\.jpg and images/a\.png"):
        read_masked_images(_write(tmp_path / "2", {"images/a.png": b"", "images/a.jpg": b"", "masks/a.png": mask}))
    other = read_masked_images(_write(tmp_path / "3", {"images/a.png": _picture(1, (4, 5)), "masks/a.png": mask}))
    with pytest.raises(SourceError, match=r"images/a\.png and its mask .*masks/a\.png is \(2, 3\), its image \(4, 5\)"):
        other[0]
    with pytest.raises(SourceError, match=r"no file index\.csv"):
        read_masked_images(tmp_path / "3", split="train")
    _write(tmp_path / "3", {"index.csv": "stem,split\nzz,train\n"})
    with pytest.raises(SourceError, match=r"no images/zz\.\*"):
        read_masked_images(tmp_path / "3", split="train")


def test_instances(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 1], [300, 0, 0]], np.uint16)
    content: dict[str, bytes | str] = {"images/a.png": _picture(1, (2, 3)), "instances/a.png": _mask(ids)}
    boxes = {"a": [[1, 0, 3, 1], [0, 1, 1, 2]]}
    data = read_instances(_write(tmp_path, content | {"boxes_xyxy.json": json.dumps(boxes)}))
    image, found, inclusive = data[0]
    assert image.shape == (2, 3, 3)
    np.testing.assert_array_equal(found, ids)
    assert inclusive.tolist() == [[1, 0, 2, 0], [0, 1, 0, 1]]
    for wrong in (
        "{",
        "[]",
        '{"a": 3}',
        '{"b": []}',
        '{"a": [[0, 0, 1]]}',
        '{"a": [[0, 0, 0, 1]]}',
        '{"a": [[0.5, 0, 1, 1]]}',
        '{"a": [[-1, 0, 1, 1]]}',
        '{"a": [[0, 0, true, 1]]}',
        '{"a": [[0, 0, NaN, 1]]}',
    ):
        _write(tmp_path, {"boxes_xyxy.json": wrong})
        with pytest.raises(SourceError, match=r"boxes_xyxy\.json"):
            read_instances(tmp_path)
    _write(tmp_path, {"boxes_xyxy.json": json.dumps({"a": [[0, 0, 4, 1]]})})
    with pytest.raises(SourceError, match="is 3x2; a box reaches beyond it"):
        read_instances(tmp_path)[0]


def test_real_nuclei_have_the_boxes_that_their_masks_have() -> None:
    path = shared_data("boxseg_nuclei", "nuclei_dev.zip")
    data = read_instances(path)
    assert (len(data), sum(len(boxes) for boxes in data.boxes)) == (300, 9466)
    assert len(read_instances(path, split="val")) == 60
    _, ids, boxes = data[0]
    found = boxes_from_instances(ids[None])
    # Where nuclei overlap, the later one hides part of the earlier; most boxes are whole.
    same = (found[:, 2:] == boxes[np.unique(ids)[1:].astype(int) - 1]).all(axis=1)
    assert same.mean() > 0.9


def test_real_slices_know_their_volumes() -> None:
    path = shared_data("boxseg_hippocampus", "hippocampus_dev.zip")
    data = read_masked_images(path, split="val")
    assert len(set(data.volumes)) == 40
    image, mask = data[0]
    assert image.shape[:2] == mask.shape
    assert set(np.unique(mask)) <= {0, 1, 2}
