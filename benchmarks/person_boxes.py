r"""Make a data set of persons with boxes out of clothing photographs and a sample of COCO.

    python -m benchmarks.person_boxes --clothing ccp_dev.zip --photos coco_sample_dev.zip --output person_boxes.zip
    edgevis train person-segmenter --data person_boxes.zip --recipe small \
        --backbone efficientnet_lite0_in1k.safetensors

What trains: the photographs of clothing of the split ``train``, the only person of each with the box of what is not
background; photographs of COCO's train2017 with ``commercial_ok`` 1, with the persons' boxes, and those that show none.
Each is there as a whole and as parts of it, half of them mirrored, all lighter or darker; none shows a crowd, whose
persons have no boxes.

What evaluates, the split ``val``: the photographs of clothing of that split, whole; and of COCO's val2017 the part
around each person of 64 pixels or more, with a quarter of the box's sides around it, where no crowd is. All of any
licence, for nothing learns from them. ``volume`` is the photograph.

The output has ``images/``, ``instances/`` (the masks, which training with ``supervision=boxes`` does not read),
``boxes_xyxy.json`` and ``index.csv``. With ``--grab WEIGHTS`` the masks of what trains are no true ones: they are what
a network that learned from the boxes finds in them, sharpened by GrabCut where both agree (after Khoreva, Benenson,
Hosang, Hein, Schiele, "Simple Does It", CVPR 2017). A second training learns these, still from boxes alone:

    python -m benchmarks.person_boxes --clothing ccp_dev.zip --photos coco_sample_dev.zip --output person_grabbed.zip \
        --grab runs/person-segmenter/best.safetensors
    edgevis train person-segmenter --data person_grabbed.zip --recipe small --set supervision=masks \
        --weights runs/person-segmenter/best.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.person_segmentation import filled, grab_cut, overlap
from benchmarks.picture_zip import PictureZip
from benchmarks.trained_weights import TrainedSegmenter
from edgevis.data.files import open_files
from edgevis.data.masks import read_pair
from edgevis.data.segmentation import index_rows, masked_images
from runtime.common.command import run_command
from runtime.images.decode import Image

_PERSON = "person"
# Boxes are of whole pixels; less than this of a side is dropped.
_LEAST_SIDE = 3
# The longer side of a picture that GrabCut sees.
_GRABBED = 224
# GrabCut is believed where its mask overlaps with the network's by this IoU.
_AGREES = 0.5
_LEAST_HEIGHT, _EVALUATED_HEIGHT, _AROUND = 48, 64, 0.25


@dataclass(frozen=True, slots=True, eq=False)
class PersonPicture:
    """A photograph and its persons.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        ids: (H, W) uint16: which person each pixel is of, from 1; 0 is none.
        boxes: (I, 4) int64, x0, y0, x1, y1 with exclusive ends; the first is the person of ``ids`` 1.
        crowds: (C, 4) likewise: regions that hold persons without boxes.
        volume: The photograph's name.
    """

    image: Image
    ids: NDArray[np.uint16]
    boxes: NDArray[np.int64]
    crowds: NDArray[np.int64]
    volume: str

    def part(self, left: int, top: int, right: int, bottom: int) -> PersonPicture:
        """A rectangle of it; boxes are cut at its border."""
        window = np.s_[top:bottom, left:right]
        shift, low, high = np.array([left, top] * 2), 0, np.array([right - left, bottom - top] * 2)
        boxes, crowds = (np.clip(rows - shift, low, high) for rows in (self.boxes, self.crowds))
        kept = _seen(boxes, _LEAST_SIDE)
        numbers = np.zeros(len(boxes) + 1, np.uint16)
        numbers[1:][kept] = np.arange(1, kept.sum() + 1)
        return PersonPicture(
            self.image[window], numbers[self.ids[window]], boxes[kept], crowds[_seen(crowds, 1)], self.volume
        )

    def mirrored(self) -> PersonPicture:
        width = self.ids.shape[1]
        boxes, crowds = (
            np.stack([width - rows[:, 2], rows[:, 1], width - rows[:, 0], rows[:, 3]], 1)
            for rows in (self.boxes, self.crowds)
        )
        return PersonPicture(self.image[:, ::-1], self.ids[:, ::-1], boxes, crowds, self.volume)

    def around(self, box: NDArray[np.int64], margins: Sequence[float]) -> PersonPicture:
        """The part around a box: left, top, right and bottom of it these shares of its sides."""
        height, width = self.ids.shape
        x0, y0, x1, y1 = box.tolist()
        across, down = x1 - x0, y1 - y0
        left, top = max(0, round(x0 - margins[0] * across)), max(0, round(y0 - margins[1] * down))
        right, bottom = min(width, round(x1 + margins[2] * across)), min(height, round(y1 + margins[3] * down))
        return self.part(left, top, max(right, left + 1), max(bottom, top + 1))


def _seen(boxes: NDArray[np.int64], least: int) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, 2] - boxes[:, 0] >= least) & (boxes[:, 3] - boxes[:, 1] >= least), np.bool_)


def _table(boxes: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.array(boxes, np.int64).reshape(-1, 4)


def clothing(path: Path) -> Iterator[tuple[PersonPicture, str]]:
    """The photographs with their person, and the split of each."""
    files = open_files(path)
    rows = index_rows(files)
    data = masked_images(files, rows)
    for index, row in enumerate(rows):
        image, labels = data[index]
        down, right = (np.flatnonzero((labels != 0).any(axis)) for axis in (1, 0))
        if not len(down):  # one photograph has no labels
            continue
        box = [right[0], down[0], right[-1] + 1, down[-1] + 1]
        ids = (labels != 0).astype(np.uint16)
        yield PersonPicture(image, ids, _table([box]), _table([]), f"clothing-{row['stem']}"), row["split"]


def photographs(path: Path) -> Iterator[tuple[PersonPicture, dict[str, str]]]:
    """The photographs of a sample of COCO with their persons, and the row of ``index.csv`` of each."""
    files = open_files(path)
    annotations: Any = files.json("annotations.json")
    for row in index_rows(files):
        image, stored, _ = read_pair(files, f"images/{row['stem']}.jpg", f"instances/{row['stem']}.png")
        height, width = stored.shape
        ids = np.zeros(stored.shape, np.uint16)
        boxes: list[list[int]] = []
        crowds: list[list[int]] = []
        for item in annotations["images"][row["stem"]]:
            if item["category"] != _PERSON:
                continue
            x0, y0, x1, y1 = item["box_xyxy"]
            box = [max(0, round(x0)), max(0, round(y0)), min(width, round(x1)), min(height, round(y1))]
            if item["iscrowd"] or min(box[2] - box[0], box[3] - box[1]) < _LEAST_SIDE:
                crowds.append(box)
                continue
            boxes.append(box)
            if item["instance"]:
                ids[stored == item["instance"]] = len(boxes)
        yield PersonPicture(image, ids, _table(boxes), _table(crowds), f"coco-{row['stem']}"), row


class PersonBoxWriter:
    """The zip that is written."""

    def __init__(self, path: Path) -> None:
        self._zip = PictureZip(path, masks="instances", columns=("split", "volume", "source"))
        self._boxes: dict[str, list[list[int]]] = {}

    def add(self, picture: PersonPicture, split: str, source: str) -> None:
        stem = self._zip.add(picture.image, picture.ids, split, picture.volume, source)
        self._boxes[stem] = picture.boxes.tolist()

    def close(self) -> dict[str, int]:
        """How many pictures each split and source has."""
        self._zip.close({"boxes_xyxy.json": self._boxes})
        names = [f"{split} {source}" for _, split, _, source in self._zip.rows]
        return {name: names.count(name) for name in sorted(set(names))}


def _varied(picture: PersonPicture, draw: np.random.Generator) -> PersonPicture:
    """Mirrored half the time, lighter or darker."""
    view = picture.mirrored() if draw.random() < 0.5 else picture
    light = view.image.astype(np.float32) * draw.uniform(0.7, 1.3) + draw.uniform(-20, 20)
    image = np.clip(light, 0, 255).astype(np.uint8)
    return PersonPicture(image, view.ids, view.boxes, view.crowds, view.volume)


def _random_part(picture: PersonPicture, draw: np.random.Generator) -> PersonPicture:
    height, width = picture.ids.shape
    rows, columns = (max(8, int(size * draw.uniform(0.4, 1))) for size in (height, width))
    top, left = int(draw.integers(height - rows + 1)), int(draw.integers(width - columns + 1))
    return picture.part(left, top, left + columns, top + rows)


def _training_views(picture: PersonPicture, draw: np.random.Generator, *, around: int) -> Iterator[PersonPicture]:
    """The whole picture, and parts of it around each person or anywhere."""
    yield _varied(picture, draw)
    high = picture.boxes[picture.boxes[:, 3] - picture.boxes[:, 1] >= _LEAST_HEIGHT]
    for box in high:
        for _ in range(around):
            yield _varied(picture.around(box, draw.uniform(0.02, 0.5, 4).tolist()), draw)
    if not len(picture.boxes):
        for _ in range(around):
            yield _varied(_random_part(picture, draw), draw)


def _grabbed(picture: PersonPicture, network: TrainedSegmenter) -> PersonPicture:
    """The picture with the network's mask, sharpened, in place of the true one."""
    height, width = picture.ids.shape
    ids = np.zeros_like(picture.ids)
    if len(picture.boxes):
        factor = min(1.0, _GRABBED / max(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        image = cv2.resize(picture.image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        scale = np.array([size[0] / width, size[1] / height] * 2)
        first, last = np.floor(picture.boxes * scale)[:, :2], np.ceil(picture.boxes * scale)[:, 2:] - 1
        boxes = np.concatenate([first, last], 1).astype(np.int64)
        known = network(image) & filled(image, boxes)
        cut = grab_cut(image, boxes, known)
        mask = (cut if overlap(cut, known) >= _AGREES else known).astype(np.float32)
        found = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
        ids = (found & filled(picture.image, picture.boxes - (0, 0, 1, 1))).astype(np.uint16)
    return PersonPicture(picture.image, ids, picture.boxes, picture.crowds, picture.volume)


def write(
    clothes: Path, sample: Path, output: Path, *, seed: int, network: TrainedSegmenter | None = None
) -> dict[str, int]:
    """Write the data set; returns how many pictures each split and source has.

    Args:
        clothes, sample: Clothing, the sample of COCO.
        output: The zip.
        seed: Of all draws.
        network: Finds the masks that what trains has; None for the true ones.
    """
    draw = np.random.default_rng(seed)
    writer = PersonBoxWriter(output)

    def train(view: PersonPicture, source: str) -> None:
        writer.add(view if network is None else _grabbed(view, network), "train", source)

    for picture, split in clothing(clothes):
        if split != "train":
            writer.add(picture, "val", "clothing")
            continue
        for view in _training_views(picture, draw, around=1):
            train(view, "clothing")
        if draw.random() < 0.5:  # without the legs
            margins = (*draw.uniform(0.05, 0.5, 3), -draw.uniform(0.2, 0.55))
            train(_varied(picture.around(picture.boxes[0], margins), draw), "clothing")
    for picture, row in photographs(sample):
        if row["coco_split"] == "val2017":
            for box in picture.boxes[picture.boxes[:, 3] - picture.boxes[:, 1] >= _EVALUATED_HEIGHT]:
                part = picture.around(box, [_AROUND] * 4)
                if not len(part.crowds):
                    writer.add(part, "val", "coco")
        elif row["commercial_ok"] == "1":
            for view in _training_views(picture, draw, around=10):
                if not len(view.crowds):
                    train(view, "coco")
    return writer.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.person_boxes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clothing", metavar="PATH", type=Path, required=True, help="images/, masks/, index.csv")
    parser.add_argument("--photos", metavar="PATH", type=Path, required=True, help="a sample of COCO")
    parser.add_argument("--output", metavar="ZIP", type=Path, required=True)
    parser.add_argument("--grab", metavar="WEIGHTS", type=Path, help="find the masks that train with these and GrabCut")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    network = None if given.grab is None else TrainedSegmenter(given.grab)
    counts = write(given.clothing, given.photos, given.output, seed=given.seed, network=network)
    print(f"Written: {given.output}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
