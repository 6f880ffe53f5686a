"""Boxes in a JSON file beside ``images/``, or around the masks of images, with ``index.csv`` for the splits.

- ``annotations.json``: ``categories`` (``id``, ``name``) and ``images``: {STEM: [{``category_id``, ``box_xyxy`` with
  exclusive ends, ``iscrowd``}]}, as a sample of COCO has them whose photos are listed with their licences.
- ``boxes_xyxy.json``: {STEM: [[x0, y0, x1, y1], …]}, exclusive ends: objects of one class.
- ``instances/STEM.png``, without either: a box around each number but 0.
- ``masks/STEM.png``: one box around all that is not 0.

The only class of the last three is named by the recipe's ``classes``, else ``object``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgevis.data.boxes import boxes_from_instances
from edgevis.data.detection import UNNAMED, BoxLabels, DetectionImages, box_labels
from edgevis.data.detection_coco import parse_coco
from edgevis.data.files import Files, by_stem
from edgevis.data.masks import read_mask
from edgevis.data.segmentation import inclusive_boxes, index_rows
from edgevis.data.splits import EVALUATED, Role, roles_of_rows
from runtime.errors import SourceError

SAMPLE, BOXES, INDEX, INSTANCES = "annotations.json", "boxes_xyxy.json", "index.csv", "instances"

_EXCLUSIVE = np.array([0, 0, 1, 1])
_COCO_SPLIT = "coco_split"
_COCO_ROLES: Mapping[str, Role] = {"train2017": "train", "val2017": "test", "train2014": "train", "val2014": "test"}


def read_tables(files: Files, *, progress: Callable[[int, int], None] = lambda done, total: None) -> DetectionImages:
    """The images of one of the layouts above, sorted by stem.

    The column ``split`` of ``index.csv`` says what trains. Where there is none, a column ``coco_split`` does:
    ``train2017`` trains and ``val2017`` evaluates, so that detectors that were trained on COCO can be measured.

    Args:
        files: The data.
        progress: Told how many masks are read, of how many.

    Raises:
        SourceError: A file cannot be read or is not as described, an image is not there, or a row has an unknown split.
    """
    rows = index_rows(files)
    images = by_stem(files, "images")
    lacking = next((row["stem"] for row in rows if row["stem"] not in images), None)
    if lacking is not None:
        raise SourceError(f"{files.path} has no {files.inside}images/{lacking}.*, which {INDEX} lists")
    stems = [row["stem"] for row in rows]
    classes: tuple[str, ...] = (UNNAMED,)
    if SAMPLE in files.names:
        classes, labels = _sample(files, stems)
    elif BOXES in files.names:
        labels = [box_labels(boxes + _EXCLUSIVE, np.zeros(len(boxes))) for boxes in inclusive_boxes(files, stems)]
    else:
        single = any(name.startswith(f"{INSTANCES}/") for name in files.names)
        labels = _around_masks(files, stems, INSTANCES if single else "masks", progress)
    return DetectionImages(
        files,
        tuple(images[stem] for stem in stems),
        tuple(labels),
        classes,
        _roles(files, rows),
        tuple(rows),
    )


def _sample(files: Files, stems: list[str]) -> tuple[tuple[str, ...], list[BoxLabels]]:
    data, where = files.json(SAMPLE), files.where(SAMPLE)
    if not (isinstance(data, dict) and isinstance(data.get("images"), dict)):
        raise SourceError(f"{where} is not an object whose images are an object of stems")
    position = {stem: number for number, stem in enumerate(stems)}
    annotations = []
    for stem in stems:
        items = data["images"].get(stem)
        if not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
            raise SourceError(f"{where} has no list of boxes for {stem}")
        for item in items:
            box = item.get("box_xyxy")
            if not (isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)):
                raise SourceError(f"{where}: {stem} has the box_xyxy {box!r}; allowed: four numbers")
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "image_id": position[stem],
                    "category_id": item.get("category_id"),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": item.get("iscrowd", 0),
                }
            )
    images = [{"id": number, "file_name": stem} for stem, number in position.items()]
    same = {"images": images, "annotations": annotations, "categories": data.get("categories")}
    classes, parsed = parse_coco(same, where)
    return classes, [image.labels for image in parsed]


def _around_masks(files: Files, stems: list[str], folder: str, progress: Callable[[int, int], None]) -> list[BoxLabels]:
    masks = by_stem(files, folder)
    labels = []
    for number, stem in enumerate(stems):
        progress(number, len(stems))
        if stem not in masks:
            raise SourceError(f"{files.path} has no {files.inside}{folder}/{stem}.*; each image needs it")
        numbers = read_mask(files, masks[stem]).numbers
        objects = numbers if folder == INSTANCES else (numbers > 0).astype(np.uint8)
        boxes = boxes_from_instances(objects[None])[:, 2:] + _EXCLUSIVE
        labels.append(box_labels(boxes, np.zeros(len(boxes))))
    progress(len(stems), len(stems))
    return labels


def _roles(files: Files, rows: list[dict[str, str]]) -> tuple[Role, ...] | None:
    if "split" in rows[0] or _COCO_SPLIT not in rows[0]:
        return roles_of_rows(files, INDEX, rows, EVALUATED)
    unknown = next((row[_COCO_SPLIT] for row in rows if row[_COCO_SPLIT] not in _COCO_ROLES), None)
    if unknown is not None:
        raise SourceError(f"{files.where(INDEX)} has the {_COCO_SPLIT} {unknown!r}; allowed: {', '.join(_COCO_ROLES)}")
    return tuple(_COCO_ROLES[row[_COCO_SPLIT]] for row in rows)
