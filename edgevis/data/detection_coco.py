"""COCO's annotations of objects: one JSON file for each split.

Format: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; cocodataset.org, "Data format". Category
ids may have holes; ``iscrowd`` marks a region of many. Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from edgevis.data.detection import MAX_BOXES, MAX_CLASSES, BoxLabels, DetectionImages, box_labels
from edgevis.data.files import Files
from edgevis.data.splits import Role, role_of
from runtime.common.json_data import parse_json
from runtime.errors import SchemaError, SourceError
from runtime.images.folders import images_of

MAX_JSON_BYTES = 1 << 30
"""The largest annotation file: instances_train2017.json has 449 MB."""

_LARGEST = 1e6
_INSTANCES = re.compile(r"(.*/)?instances_[^/]*\.json")


@dataclass(frozen=True, slots=True, eq=False)
class CocoImage:
    """One entry of ``images``.

    Attributes:
        file_name: As stated.
        labels: The boxes.
    """

    file_name: str
    labels: BoxLabels


def annotation_files(files: Files) -> list[str]:
    """The files that may hold COCO annotations: ``instances_*.json`` where there are any, else other JSON files.

    Looked for at the top, in ``annotations/`` and in the folders of splits, as other exporters write them.
    """
    names = [name for name in files.names if name.lower().endswith(".json") and name.count("/") <= 1]
    instances = [name for name in names if _INSTANCES.fullmatch(name)]
    if instances:
        return instances
    return [
        name
        for name in names
        if name.startswith("annotations/") or PurePosixPath(name).name.endswith(".coco.json") or "/" not in name
    ]


def read_coco(files: Files, annotations: Sequence[str]) -> DetectionImages:
    """The images of one or more annotation files.

    Args:
        files: Annotations and images.
        annotations: The annotation files. The name of each, or of its folder, says its split (``instances_val2017``);
            a single one may lack it. Images lie beside the file, in a folder of their split, or anywhere if their
            names are unique.

    Raises:
        SourceError: A file cannot be read or is not in this format, an image is not there, splits have other classes,
            or it is not clear which split a file is.
    """
    parsed = [(name, *parse_coco(read_json(files, name), files.where(name))) for name in annotations]
    roles = [_role(name) for name in annotations]
    if len(annotations) > 1 and None in roles:
        unclear = annotations[roles.index(None)]
        raise SourceError(
            f"{files.path} has the annotations {', '.join(annotations)}; the name of {unclear} does not say its split: "
            "name the files *_train.json, *_val.json, *_test.json"
        )
    classes = parsed[0][1]
    for name, other, _ in parsed:
        if other != classes:
            raise SourceError(f"{files.where(name)} has other categories than {files.where(annotations[0])}")
    finder = ImageFinder(files)
    names, labels, splits = [], [], []
    for (annotation, _, images), role in zip(parsed, roles, strict=True):
        for image in images:
            names.append(finder.find(image.file_name, annotation))
            labels.append(image.labels)
            splits.append(role)
    stated = tuple(role for role in splits if role is not None)
    alone = len(set(stated)) < 2  # a single split has nothing to evaluate on: it is divided
    return DetectionImages(files, tuple(names), tuple(labels), classes, None if alone else stated)


def read_json(files: Files, name: str) -> Any:
    """The content of an annotation file; SourceError if it cannot be read, is too large or not JSON."""
    try:
        return parse_json(files.read(name, max_bytes=MAX_JSON_BYTES))
    except SchemaError as error:
        raise SourceError(f"{files.where(name)} is {error}") from error


def parse_coco(data: object, where: str) -> tuple[tuple[str, ...], list[CocoImage]]:
    """The classes, sorted by category id, and the images in their order.

    An annotation may have a ``score`` of 0 to 1, as pseudo-labels do; it becomes the weight of its box.

    Args:
        data: The parsed JSON.
        where: For messages.

    Raises:
        SourceError: It is not in COCO's format, refers to what is not there, has an id twice, a number that is not
            finite or too large, or more boxes or classes than are allowed.
    """
    if not (isinstance(data, dict) and {"images", "annotations", "categories"} <= set(data)):
        raise SourceError(f"{where} is not COCO's format: an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not (isinstance(data[key], list) and all(isinstance(item, dict) for item in data[key])):
            raise SourceError(f"{where}: {key} is not a list of objects")
    categories = sorted((_id(item, "id", f"{where}: categories"), item.get("name")) for item in data["categories"])
    names = tuple(name for _, name in categories)
    if not 0 < len(names) <= MAX_CLASSES or len(set(names)) != len(names) or len(dict(categories)) != len(names):
        raise SourceError(f"{where}: categories; allowed: 1 to {MAX_CLASSES}, each id and name once")
    if not all(isinstance(name, str) and name.strip() and name.isprintable() for name in names):
        raise SourceError(f"{where}: a category has no name")
    position = {number: index for index, (number, _) in enumerate(categories)}
    rows: dict[int, list[tuple[list[float], int, float, bool]]] = {}
    for item in data["images"]:
        number = _id(item, "id", f"{where}: images")
        if number in rows:
            raise SourceError(f"{where}: two images have the id {number}")
        rows[number] = []
    for item in data["annotations"]:
        number, category = (_id(item, key, f"{where}: annotations") for key in ("image_id", "category_id"))
        if number not in rows or category not in position:
            kind = f"image_id {number}" if number not in rows else f"category_id {category}"
            raise SourceError(f"{where}: an annotation has the {kind}, which the file does not list")
        rows[number].append(_box(item, position[category], f"{where}: image {number}"))
    images = []
    for item in data["images"]:
        boxes = rows[item["id"]]
        if len(boxes) > MAX_BOXES:
            raise SourceError(f"{where}: image {item['id']} has {len(boxes)} boxes; allowed: {MAX_BOXES}")
        corners, classes, weights, ignored = zip(*boxes, strict=True) if boxes else ((), (), (), ())
        images.append(CocoImage(_name(item, where), box_labels(corners, classes, weights=weights, ignored=ignored)))
    return names, images


class ImageFinder:
    """Finds the image that an annotation file names, wherever it lies in the data."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._by_name: dict[str, list[str]] = {}
        for name in images_of(files.names):
            self._by_name.setdefault(PurePosixPath(name).name, []).append(name)

    def find(self, name: str, annotation: str) -> str:
        """The image's path in the data.

        Raises:
            SourceError: There is no such image, or several, of which none lies beside the annotation file, in
                ``images/`` or in the folder that the annotation file is called after.
        """
        folder, stem = PurePosixPath(annotation).parent, PurePosixPath(annotation).stem
        plain = PurePosixPath(name.replace("\\", "/"))
        split = stem.rpartition("_")[2]
        for place in (
            plain,
            folder / plain,
            *(PurePosixPath(part) / plain for part in ("images", split)),
            PurePosixPath("images") / split / plain,
        ):
            if str(place) in self._files.names:
                return str(place)
        found = [other for other in self._by_name.get(plain.name, []) if f"/{other}".endswith(f"/{plain}")]
        if len(found) != 1:
            problem = f"several: {', '.join(found[:3])}" if found else "none"
            raise SourceError(
                f"{self._files.where(annotation)} lists the image {name!r}; of that name there are {problem}"
            )
        return found[0]


def _role(annotation: str) -> Role | None:
    """The split that the name of a file or of its folder says."""
    path = PurePosixPath(annotation)
    for text in (path.stem, path.parent.name):
        for word in re.split(r"[^A-Za-z]+", text):
            if (role := role_of(word)) in ("train", "val", "test"):
                return role
    return None


def _id(item: Mapping[str, Any], key: str, where: str) -> int:
    value = item.get(key)
    if type(value) is not int or not 0 <= value < 1 << 63:  # type(), not isinstance: True is an int, too
        raise SourceError(f"{where}: {key} is {value!r}; allowed: a whole number of 0 or more")
    return value


def _name(item: Mapping[str, Any], where: str) -> str:
    value = item.get("file_name")
    if not (isinstance(value, str) and 0 < len(value) <= 1024 and value.isprintable()):
        raise SourceError(f"{where}: image {item['id']} has the file_name {value!r}; allowed: a path")
    if {"", ".", ".."} & set(value.replace("\\", "/").split("/")):
        raise SourceError(f"{where}: image {item['id']} has the file_name {value!r}, which could lead out of the data")
    return value


def is_coordinate(value: object) -> bool:
    """Whether a value of JSON is a finite number that an image can have."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and abs(value) <= _LARGEST


def _box(item: Mapping[str, Any], category: int, where: str) -> tuple[list[float], int, float, bool]:
    box, score, crowd = item.get("bbox"), item.get("score", 1.0), item.get("iscrowd", 0)
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_coordinate, box)) and min(box[2:]) >= 0):
        raise SourceError(f"{where} has the bbox {box!r}; allowed: [x, y, width, height], finite, sides of 0 or more")
    if not (is_coordinate(score) and 0 <= score <= 1):
        raise SourceError(f"{where} has the score {score!r}; allowed: 0 to 1")
    if crowd not in (0, 1):
        raise SourceError(f"{where} has iscrowd {crowd!r}; allowed: 0, 1")
    x, y, width, height = box
    return [x, y, x + width, y + height], category, float(score), bool(crowd)
