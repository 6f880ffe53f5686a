r"""Make one data set of few-shot segmentation out of clothing, a sample of COCO, and pictures of single objects.

    python -m benchmarks.general_masks --clothing ccp_dev.zip --things coco_sample_dev.zip \
        --objects caltech101_dev.zip --output general_masks.zip

What trains: the photographs of clothing of the split ``train``, whole and cropped, also with all of a person, all
clothes or hair and skin as one thing; photographs of the sample of COCO with ``commercial_ok`` 1 that show none of the
categories that are set aside; pictures of single objects, whose masks GrabCut finds (Rother, Kolmogorov, Blake,
SIGGRAPH 2004, from an ellipse in the middle: most are right); and objects of all of these pasted on other photographs,
beside others.

What never trains: of clothing the classes that ``edgevis train --seed 0`` sets aside in ``ccp_dev.zip`` (accessories,
blazer, jeans, t-shirt are novel; pants, sweater validate); of COCO the categories of COCO-20i's fold 3 (novel) and fold
2 (validate), every photograph that shows one, and objects that are of these categories by other names.

The output is a zip of ``images/``, ``masks/`` of class ids, ``index.csv`` with a column ``split``, and
``classes.json``, which names the novel classes and those that validate.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.picture_zip import PictureZip
from edgevis.data.few_shot_instances import read_instance_classes
from edgevis.data.files import open_files
from edgevis.data.masks import IGNORE, read_pair
from edgevis.data.segmentation import index_rows, masked_images
from runtime.common.command import run_command
from runtime.images.decode import Image, decode_image

Labels = NDArray[np.uint8]

_NOVEL_CLOTHES, _HELD_CLOTHES = (1, 4, 25, 51), (31, 48)
_HAIR, _SKIN = 19, 41
# Class ids: clothing has its own, 1 to 58.
_PERSON, _OUTFIT, _BODY = 60, 61, 62
_THINGS, _OBJECTS = 100, 181
_NOVEL_FOLD, _HELD_FOLD, _FOLDS = 3, 2, 4
# Of the objects: names of categories that are set aside.
_SAME_BY_NAME = ("Motorbikes", "stop_sign", "laptop", "cellphone", "wild_cat")
_GRABBED, _ELLIPSE = 160, 0.85
_LEAST, _MOST = 0.06, 0.75


@dataclass(frozen=True, slots=True, eq=False)
class MaskedPicture:
    """An image with a class id for each pixel, (H, W) uint8, 255 where it is not known."""

    image: Image
    labels: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """One object: its rectangle, and which of its pixels are the object's."""

    image: Image
    mask: NDArray[np.bool_]
    class_id: int


class MaskWriter:
    """The zip that is written; all pictures are brought to one size, as the model will stretch them."""

    def __init__(self, path: Path, side: int) -> None:
        self._zip, self._side = PictureZip(path, masks="masks", columns=("split",)), side

    def add(self, picture: MaskedPicture, split: str) -> None:
        size = (self._side, self._side)
        shrinks = max(picture.labels.shape) > self._side
        image = cv2.resize(picture.image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        labels = cv2.resize(picture.labels, size, interpolation=cv2.INTER_NEAREST)
        self._zip.add(image, labels, split)

    def close(self, classes: dict[str, object]) -> dict[str, int]:
        """How many pictures each split has."""
        self._zip.close({"classes.json": classes})
        return dict(Counter(split for _, split in self._zip.rows))


def clothing(path: Path) -> Iterator[tuple[MaskedPicture, str]]:
    """The photographs, and whether each trains, validates or evaluates."""
    files = open_files(path)
    rows = index_rows(files)
    data = masked_images(files, rows)
    for index, row in enumerate(rows):
        image, labels = data[index]
        split = "train"
        if row["split"] != "train":
            novel = any((labels == value).mean() > 0.01 for value in _NOVEL_CLOTHES)
            split = "test" if novel else "val"
        yield MaskedPicture(image, labels), split


def things(path: Path) -> Iterator[tuple[MaskedPicture, str]]:
    """The photographs of the sample of COCO that are used, likewise."""
    found = read_instance_classes(path)
    data = found.examples
    tables = data.tables or {}
    for row, names in zip(found.rows, zip(data.images, data.masks, strict=True), strict=True):
        image, stored, _ = read_pair(data.files, *names)
        labels = tables[names[1]][stored]
        shown = {int(value) for value in np.unique(labels) if 0 < value < IGNORE}
        folds = {(value - 1) % _FOLDS for value in shown}
        share = {(value - 1) % _FOLDS for value in shown if (labels == value).mean() > 0.01}
        labels = np.where((labels > 0) & (labels < IGNORE), labels + _THINGS, labels).astype(np.uint8)
        if _NOVEL_FOLD in share:
            yield MaskedPicture(image, labels), "test"
        elif _HELD_FOLD in share:
            yield MaskedPicture(image, labels), "val"
        elif row.get("commercial_ok") == "1" and not {_NOVEL_FOLD, _HELD_FOLD} & folds:
            yield MaskedPicture(image, labels), "train"


def objects(path: Path) -> Iterator[MaskedPicture]:
    """The pictures of single objects in whose middle GrabCut finds one."""
    files = open_files(path)
    rows = list(csv.DictReader(io.StringIO(files.text("labels.csv"))))
    names = sorted({row["class_name"] for row in rows} - set(_SAME_BY_NAME))
    for row in rows:
        if row["class_name"] in names:
            image = decode_image(files.read(row["path"]), name=row["path"])
            factor = _GRABBED / max(image.shape[:2])
            small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            found = grabbed(small.astype(np.uint8, copy=False))
            if found is not None:
                height, width = image.shape[:2]
                mask = cv2.resize(found, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
                class_id = _OBJECTS + names.index(row["class_name"])
                yield MaskedPicture(image, np.where(mask, class_id, 0).astype(np.uint8))


def grabbed(image: Image) -> NDArray[np.float32] | None:
    """(H, W), 1 on the object in the middle of a picture; None where what is found is no object's size."""
    height, width = image.shape[:2]
    border = max(2, round(0.05 * min(height, width)))
    down, right = np.mgrid[:height, :width]
    far = ((right - width / 2) / (width / 2)) ** 2 + ((down - height / 2) / (height / 2)) ** 2 > _ELLIPSE
    guess = np.where(far, cv2.GC_PR_BGD, cv2.GC_PR_FGD).astype(np.uint8)
    for edge in (np.s_[:border], np.s_[-border:], np.s_[:, :border], np.s_[:, -border:]):
        guess[edge] = cv2.GC_BGD
    nowhere: Any = None  # which cv2's stubs do not allow
    try:
        cv2.grabCut(image, guess, nowhere, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # nothing is left to model one of the two sides by
        return None
    inside = cv2.morphologyEx((guess & 1).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(inside)
    areas = stats[:, cv2.CC_STAT_AREA]
    if count < 2:
        return None
    kept = np.isin(parts, [part for part in range(1, count) if areas[part] > 0.2 * areas[1:].max()])
    return kept.astype(np.float32) if _LEAST < kept.mean() < _MOST else None


def cut(picture: MaskedPicture, mask: NDArray[np.bool_], class_id: int) -> Cutout:
    down, right = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    part = np.s_[down[0] : down[-1] + 1, right[0] : right[-1] + 1]
    return Cutout(picture.image[part], mask[part], class_id)


def cropped(picture: MaskedPicture, draw: np.random.Generator, least: float) -> MaskedPicture:
    """A part with at least ``least`` of both sides, mirrored half the time, lighter or darker."""
    height, width = picture.labels.shape
    share = draw.uniform(least, 1)
    rows, columns = (max(1, int(size * min(1, share * draw.uniform(0.9, 1.15)))) for size in (height, width))
    top, left = int(draw.integers(height - rows + 1)), int(draw.integers(width - columns + 1))
    part = np.s_[top : top + rows, left : left + columns]
    image, labels = picture.image[part], picture.labels[part]
    if draw.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    light = image.astype(np.float32) * draw.uniform(0.8, 1.2) + draw.uniform(-15, 15)
    return MaskedPicture(np.clip(light, 0, 255).astype(np.uint8), np.ascontiguousarray(labels))


def pasted(ground: MaskedPicture, cutouts: Sequence[Cutout], draw: np.random.Generator, side: int) -> MaskedPicture:
    """A square part of a picture with objects on it, the later ones before the earlier ones."""
    height, width = ground.labels.shape
    square = int(draw.uniform(0.6, 1) * min(height, width))
    top, left = int(draw.integers(height - square + 1)), int(draw.integers(width - square + 1))
    part = np.s_[top : top + square, left : left + square]
    image = cv2.resize(ground.image[part], (side, side)).astype(np.float32)
    labels = cv2.resize(ground.labels[part], (side, side), interpolation=cv2.INTER_NEAREST)
    for cutout in cutouts:
        factor = draw.uniform(0.15, 0.5) * side / np.sqrt(max(1, cutout.mask.sum()))
        factor = min(factor, 1.1 * side / max(cutout.mask.shape))
        size = tuple(max(8, int(length * factor)) for length in cutout.mask.shape[::-1])
        scaled = cv2.resize(cutout.image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
        opaque = cv2.resize(cutout.mask.astype(np.float32), size)
        flip = slice(None, None, int(draw.choice([-1, 1])))
        x, y = (int(draw.uniform(0.15, 0.85) * side) - length // 2 for length in size)
        place = np.array([[1, 0, x], [0, 1, y]], np.float32)
        alpha = cv2.warpAffine(np.ascontiguousarray(opaque[:, flip]), place, (side, side))
        above = cv2.warpAffine(np.ascontiguousarray(scaled[:, flip]), place, (side, side))
        soft = cv2.GaussianBlur(alpha, (3, 3), 0)[..., None]
        image = image * (1 - soft) + above * soft
        labels[alpha > 0.5] = cutout.class_id
    return MaskedPicture(np.clip(image, 0, 255).astype(np.uint8), labels.astype(np.uint8, copy=False))


def _whole(labels: Labels, draw: np.random.Generator) -> Labels:
    """Several classes of clothing as one: the person, the clothes, or hair and skin."""
    person, body = labels > 0, np.isin(labels, (_HAIR, _SKIN))
    mask, class_id = ((person, _PERSON), (person & ~body, _OUTFIT), (body, _BODY))[int(draw.integers(3))]
    return np.where(mask, class_id, 0).astype(np.uint8)


def write(
    dressed: Path, sample: Path, single: Path, output: Path, *, side: int, crops: int, composites: int, seed: int
) -> dict[str, int]:
    """Write the data set; returns how many pictures each split has.

    Args:
        dressed, sample, single: Clothing, the sample of COCO, the pictures of single objects.
        output: The zip.
        side: Of all pictures.
        crops: Of each photograph of clothing; of each of COCO three times as many.
        composites: For each class of which there are cutouts.
        seed: Of all draws.
    """
    draw = np.random.default_rng(seed)
    writer = MaskWriter(output, side)
    grounds: list[MaskedPicture] = []
    cutouts: dict[int, list[Cutout]] = defaultdict(list)
    for picture, split in clothing(dressed):
        writer.add(picture, split)
        if split == "train":
            for _ in range(crops):
                writer.add(cropped(picture, draw, 0.55), split)
            part = cropped(picture, draw, 0.6)
            writer.add(MaskedPicture(part.image, _whole(part.labels, draw)), split)
            if draw.random() < 0.25:
                cutouts[_PERSON].append(cut(picture, picture.labels > 0, _PERSON))
    for picture, split in things(sample):
        writer.add(picture, split)
        if split == "train":
            grounds += [picture] * 4
            for _ in range(3 * crops):
                writer.add(cropped(picture, draw, 0.45), split)
            for value in np.unique(picture.labels[(picture.labels > 0) & (picture.labels < IGNORE)]):
                count, parts, stats, _ = cv2.connectedComponentsWithStats((picture.labels == value).astype(np.uint8))
                for number in range(1, count):
                    if stats[number, cv2.CC_STAT_AREA] > 0.01 * parts.size:
                        cutouts[int(value)].append(cut(picture, parts == number, int(value)))
    for number, picture in enumerate(objects(single)):
        writer.add(cropped(picture, draw, 0.75), "train")
        value = int(picture.labels.max())
        cutouts[value].append(cut(picture, picture.labels == value, value))
        if number % 14 == 0:
            grounds.append(picture)
    known = sorted(cutouts)
    for value in known:
        for _ in range(composites):
            others = [int(known[draw.integers(len(known))]) for _ in range(draw.integers(4))]
            order = draw.permutation([value, *others])
            chosen = [cutouts[int(kind)][draw.integers(len(cutouts[int(kind)]))] for kind in order]
            writer.add(pasted(grounds[draw.integers(len(grounds))], chosen, draw, side), "train")
    folds = {
        fold: [_THINGS + value for value in range(1, 81) if (value - 1) % _FOLDS == fold] for fold in range(_FOLDS)
    }
    return writer.close(
        {"novel": [*_NOVEL_CLOTHES, *folds[_NOVEL_FOLD]], "validation": [*_HELD_CLOTHES, *folds[_HELD_FOLD]]}
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the data set; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.general_masks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clothing", metavar="PATH", type=Path, required=True, help="images/, masks/, index.csv")
    parser.add_argument("--things", metavar="PATH", type=Path, required=True, help="a sample of COCO")
    parser.add_argument("--objects", metavar="PATH", type=Path, required=True, help="labels.csv: path, class_name")
    parser.add_argument("--output", metavar="ZIP", type=Path, required=True)
    parser.add_argument("--side", type=int, default=321, help="of all pictures (default: 321)")
    parser.add_argument("--crops", type=int, default=2, help="of each photograph of clothing (default: 2)")
    parser.add_argument("--composites", type=int, default=30, help="for each kind of object (default: 30)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    sizes = {"side": given.side, "crops": given.crops, "composites": given.composites, "seed": given.seed}
    counts = write(given.clothing, given.things, given.objects, given.output, **sizes)
    print(f"Written: {given.output}: " + ", ".join(f"{count} {split}" for split, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
