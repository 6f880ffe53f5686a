"""Persons with boxes out of two data sets: who trains, who evaluates, that boxes fit, and how masks are measured."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import person_segmentation
from benchmarks.person_boxes import PersonPicture, main
from benchmarks.person_segmentation import FILLED, filled, grab_cut, measure, overlap
from edgevis.data.segmentation import InstanceImages, read_instances

pytestmark = pytest.mark.torch

HEIGHT, WIDTH = 120, 100


def _saved(path: Path, pixels: np.ndarray) -> None:  # type: ignore[type-arg]
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def _noise(seed: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("persons")
    clothes, photos = folder / "clothes", folder / "photos"
    rows = ["stem,split"]
    for number in range(4):
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        if number:  # the first has no labels, as one photograph of the real ones
            labels[10:110, 30:60] = 14
            labels[40:50, 60:70] = 255
        _saved(clothes / "images" / f"{number}.jpg", _noise(number))
        _saved(clothes / "masks" / f"{number}.png", labels)
        rows.append(f"{number},{'train' if number < 3 else 'val'}")
    (clothes / "index.csv").write_text("\n".join(rows) + "\n")
    rows, images = ["stem,coco_split,commercial_ok"], {}
    for stem, split, permitted, persons in (
        ("a", "train2017", 1, 1),
        ("b", "train2017", 0, 1),
        ("c", "train2017", 1, 0),
        ("d", "val2017", 0, 1),
        ("e", "val2017", 1, 2),
    ):
        ids = np.zeros((HEIGHT, WIDTH), np.uint16)
        items = [{"category": "dog", "box_xyxy": [0, 0, 20, 20], "instance": 9, "iscrowd": 0}]
        ids[:20, :20] = 9
        if persons:
            ids[30:100, 50:80] = 3
            box = [50.2, 29.8, 80.1, 99.7]
            items.append({"category": "person", "box_xyxy": box, "instance": 3, "iscrowd": 0})
        if persons > 1:
            items.append({"category": "person", "box_xyxy": [60, 0, 99, 30], "instance": 0, "iscrowd": 1})
        _saved(photos / "images" / f"{stem}.jpg", _noise(ord(stem)))
        _saved(photos / "instances" / f"{stem}.png", ids)
        images[stem] = items
        rows.append(f"{stem},{split},{permitted}")
    (photos / "index.csv").write_text("\n".join(rows) + "\n")
    (photos / "annotations.json").write_text(json.dumps({"images": images}))
    path = folder / "persons.zip"
    assert main(["--clothing", str(clothes), "--photos", str(photos), "--output", str(path)]) == 0
    return path


def test_who_trains_and_who_evaluates(made: Path) -> None:
    train, val = (read_instances(made, split=split) for split in ("train", "val"))
    assert set(train.volumes) == {"clothing-1", "clothing-2", "coco-a", "coco-c"}  # no other licence than permitted
    assert val.volumes == ("clothing-3", "coco-d")  # around e's person is a crowd
    _, ids, boxes = val[1]
    assert ids.shape == (106, 46)  # a quarter of the box around it, up to the border
    assert boxes.tolist() == [[8, 18, 37, 87]]
    assert not [box for volume, box in zip(train.volumes, train.boxes, strict=True) if volume == "coco-c" and len(box)]


def test_boxes_fit_the_persons_of_every_view(made: Path) -> None:
    """Those of parts and mirrored views, too; a view without the legs may cut off the arm."""
    train = read_instances(made, split="train")
    for number in range(len(train)):
        image, ids, boxes = train[number]
        assert image.shape[:2] == ids.shape
        for place, (x1, y1, x2, y2) in enumerate(boxes.tolist(), start=1):
            down, right = (np.flatnonzero((ids == place).any(axis)) for axis in (1, 0))
            assert [down[0], down[-1]] == [y1, y2]
            assert right[0] >= x1
            assert right[-1] <= x2
            assert right[-1] - right[0] >= 29


def test_a_part_renumbers_persons() -> None:
    ids = np.zeros((40, 40), np.uint16)
    ids[:5, :5], ids[20:30, 10:30] = 1, 2
    boxes = np.array([[0, 0, 5, 5], [10, 20, 30, 30]])
    picture = PersonPicture(np.zeros((40, 40, 3), np.uint8), ids, boxes, np.zeros((0, 4), np.int64), "x")
    part = picture.part(15, 10, 40, 25)
    assert part.boxes.tolist() == [[0, 10, 15, 15]]
    assert np.unique(part.ids).tolist() == [0, 1]
    assert part.mirrored().boxes.tolist() == [[10, 10, 25, 15]]
    assert (part.mirrored().ids[10:15, 10:] == 1).all()


def test_measured_masks(made: Path) -> None:
    """True masks have an overlap of 1, and the boxes filled that of their areas."""
    val = read_instances(made, split="val")
    true = {val[place][1].shape: val[place][1] > 0 for place in range(len(val))}
    twice = InstanceImages(
        val.files, val.images * 2, val.instances * 2, val.boxes * 2, ("clothing-3", "coco-d", "clothing-4", "coco-f")
    )
    rows = {
        (row.source, row.method): row
        for row in measure(twice, ["clothing", "coco"] * 2, {"true": lambda image: true[image.shape[:2]]})
    }
    ones = (rows["clothing", "true"], rows["coco", "true in the boxes"], rows["coco", FILLED])
    assert all(row.iou == (1, 0) for row in ones)
    assert rows["clothing", FILLED].iou.value == pytest.approx((100 * 30 + 10 * 10) / (100 * 40))
    assert rows["clothing", "true"].difference == pytest.approx((1 - 3100 / 4000, 0))
    assert (rows["coco", "true"].pictures, rows["coco", "true"].photographs) == (2, 2)
    assert overlap(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 1


def test_grab_cut_finds_a_disc_in_its_box() -> None:
    image = np.full((80, 80, 3), (40, 160, 60), np.uint8)
    cv2.circle(image, (40, 40), 20, (200, 40, 40), -1)
    disc = (image[..., 0] == 200) & (image[..., 1] == 40)
    box = np.array([[20, 20, 60, 60]])
    assert overlap(grab_cut(image, box), disc) > 0.95 > overlap(filled(image, box), disc)
    part = np.zeros((80, 80), bool)
    part[30:45, 30:45] = True
    assert overlap(grab_cut(image, np.array([[5, 5, 75, 75]]), part), disc) > 0.95
    everything = np.array([[0, 0, 79, 79]])
    assert grab_cut(image, everything).all()  # nothing models the background


def test_other_weights_are_refused(made: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "x.safetensors"))
    arguments = ["--data", str(made), "--weights", str(tmp_path / "x.safetensors")]
    assert person_segmentation.main(arguments) == 1
    assert "does not say which model" in capsys.readouterr().err
