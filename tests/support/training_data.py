"""Folders of small pictures, drawn in code, that each task can be trained on."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt


def write_classes(folder: Path, *, classes: int = 8, images: int = 12, side: int = 40) -> Path:
    """A folder for each class; pictures of one class share a colour."""
    random = np.random.default_rng(0)
    for number in range(classes):
        base = random.integers(40, 216, 3)
        for index in range(images):
            image = np.clip(base + random.normal(0, 25, (side, side, 3)), 0, 255).astype(np.uint8)
            _write(folder / f"class-{number:02}" / f"{index:02}.png", image)
    return folder


def write_persons(folder: Path, *, persons: int = 12, images: int = 4) -> Path:
    """Pictures of coloured figures by two cameras, with the table of a PKU-style data set."""
    random = np.random.default_rng(1)
    rows = []
    for person in range(persons):
        colours = random.integers(0, 256, (2, 3))
        split = "train" if person < persons - 4 else ""
        for camera in (1, 2):
            for index in range(images // 2):
                image = np.full((128, 64, 3), 120, np.uint8) + random.integers(0, 30, (128, 64, 3), np.uint8)
                image[10:60, 15:50], image[60:120, 20:45] = colours
                name = f"images/{person:03}/{camera:02}_{index}.png"
                _write(folder / name, image)
                part = split or ("query" if camera == 1 else "gallery")
                rows.append({"path": name, "pid": person, "camid": camera, "split": part})
    _table(folder / "labels.csv", rows)
    return folder


def write_dressed_persons(path: Path) -> Path:
    """A zip like Clothing Co-Parsing's: six photos of a person of three coloured rectangles, two of them held out."""
    rng = np.random.default_rng(0)
    rows = ["stem,width,height,split,present_ids"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("classes.json", json.dumps({"names": ["null", "coat", "hair", "jeans"]}))
        for index in range(6):
            image = rng.integers(0, 256, (160, 120, 3), np.uint8)
            mask = np.zeros((160, 120), np.uint8)
            for top, bottom, part in ((20, 40, 2), (40, 90, 1), (90, 150, 255)):
                image[top:bottom, 40:80] = rng.integers(0, 256, 3, np.uint8)
                mask[top:bottom, 40:80] = part
            archive.writestr(f"images/{index:04}.jpg", cv2.imencode(".jpg", image)[1].tobytes())
            archive.writestr(f"masks/{index:04}.png", cv2.imencode(".png", mask)[1].tobytes())
            rows.append(f"{index:04},120,160,{'val' if index > 3 else 'train'},1 2 255")
        archive.writestr("index.csv", "\n".join(rows))
    return path


def write_masks(folder: Path, *, images: int = 12, classes: int = 1, side: int = 48) -> Path:
    """Bright rectangles on dark noise with their masks; class c has its own colour and is on every c-th picture."""
    random = np.random.default_rng(2)
    colours = random.integers(120, 256, (classes, 3))
    rows = []
    for index in range(images):
        image = random.integers(0, 60, (side, side, 3), np.uint8)
        mask = np.zeros((side, side), np.uint8)
        value = index % classes
        top, left = random.integers(4, side // 2, 2)
        image[top : top + side // 3, left : left + side // 3] = colours[value]
        mask[top : top + side // 3, left : left + side // 3] = value + 1
        _write(folder / "images" / f"{index:03}.png", image)
        _write(folder / "masks" / f"{index:03}.png", mask)
        rows.append({"stem": f"{index:03}", "split": "val" if index >= 2 * images // 3 else "train"})
    _table(folder / "index.csv", rows)
    return folder


def write_boxes(
    folder: Path, *, train: int = 4, val: int = 2, side: int = 64, scores: Sequence[float] = (), seed: int = 3
) -> Path:
    """One or two bright rectangles, red ``box`` or blue ``crate``, on dark noise, with COCO's JSON of each split.

    Args:
        folder: Where they are written.
        train, val: Pictures; without ``val`` there is one ``annotations.json``.
        side: Of the pictures.
        scores: Given to the boxes in turn, as a teacher does; none where it is empty.
        seed: Of the pictures.
    """
    random = np.random.default_rng(seed)
    categories = [{"id": 3, "name": "box"}, {"id": 9, "name": "crate"}]
    for name, first, count in (("train", 0, train), ("val", train, val)) if val else (("", 0, train),):
        images: list[dict[str, object]] = []
        boxes: list[dict[str, object]] = []
        for number in range(first, first + count):
            image = random.integers(0, 60, (side, side, 3), np.uint8)
            for part in range(1 + number % 2):  # side by side, so that none hides another
                width, height = random.integers(side // 4, side // 2 - 2, 2).tolist()
                x, y = part * side // 2 + int(random.integers(0, 3)), int(random.integers(0, side - height))
                label = int(random.integers(0, 2))
                image[y : y + height, x : x + width] = (40, 40, 220) if label == 0 else (220, 80, 40)
                box = {"id": len(boxes) + 1, "image_id": number, "category_id": categories[label]["id"], "iscrowd": 0}
                score = {"score": scores[len(boxes) % len(scores)]} if scores else {}
                boxes.append({**box, "bbox": [x, y, width, height], "area": width * height, **score})
            _write(folder / "images" / f"{number:03}.png", image)
            images.append({"id": number, "file_name": f"{number:03}.png", "width": side, "height": side})
        path = folder / "annotations" / f"instances_{name}.json" if name else folder / "annotations.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return folder


def _write(path: Path, image: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def _table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
