"""Few-shot segmentation from instance masks whose categories a table names, as of a sample of COCO.

Layout: ``images/STEM.*``; ``instances/STEM.png`` with 16 bits, 0 is background; ``annotations.json`` with
``categories`` (``id``, ``name``) and ``images``: {STEM: [{``category_id``, ``instance``, ``iscrowd``}]}, where
``instance`` 0 has no mask of its own; and perhaps ``index.csv``. All instances of one category in an image are one
mask; a crowd is ignored.
Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevis.data.few_shot_masks import ClassMasks, Visible, class_members
from edgevis.data.files import Files, by_stem, open_files
from edgevis.data.masks import IGNORE, read_mask
from edgevis.data.segmentation import index_rows
from runtime.errors import SourceError

ANNOTATIONS, FOLDER = "annotations.json", "instances"

_INSTANCES = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class InstanceClasses:
    """Images whose instances have categories.

    Attributes:
        examples: The images, those that show nothing too, and which show which category; class ids are positions in
            the sorted ids of the categories, from 1.
        names: The category of each class id from 1.
        rows: The row of ``index.csv`` of each image.
    """

    examples: ClassMasks
    names: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]


def has_instance_classes(files: Files) -> bool:
    """Whether the listing has this module's layout."""
    return ANNOTATIONS in files.names and any(name.startswith(f"{FOLDER}/") for name in files.names)


def read_instance_classes(path: str | os.PathLike[str], *, visible: Visible | None = None) -> InstanceClasses:
    """The images of a folder or zip, sorted by stem; all masks are read once to see what they show.

    Args:
        path: A folder or zip.
        visible: What makes an image an example of a category; 1 % of its pixels by default.

    Raises:
        SourceError: It cannot be read, an image has no mask or no list of annotations, or these are not as described.
    """
    files = open_files(path)
    where = files.where(ANNOTATIONS)
    data = files.json(ANNOTATIONS)
    if not (isinstance(data, dict) and isinstance(data.get("images"), dict)):
        raise SourceError(f"{where} is not an object whose images are an object of stems")
    numbers, names = _categories(data.get("categories"), where)
    rows = index_rows(files)
    stems = [row["stem"] for row in rows]
    folders = {folder: by_stem(files, folder) for folder in ("images", FOLDER)}
    for folder, paths in folders.items():
        lacking = next((stem for stem in stems if stem not in paths), None)
        if lacking is not None:
            raise SourceError(f"{files.path} has no {files.inside}{folder}/{lacking}.*; each image needs it")
    masks = tuple(folders[FOLDER][stem] for stem in stems)
    tables = {
        mask: _table(data["images"].get(stem), numbers, f"{stem} in {where}")
        for stem, mask in zip(stems, masks, strict=True)
    }
    seen = visible or Visible(min_share=0.01)
    shown = [
        [value for value in seen.values(tables[mask][read_mask(files, mask).numbers]) if 0 < value < IGNORE]
        for mask in masks
    ]
    ids = range(1, len(names) + 1)
    examples = ClassMasks(
        files,
        tuple(folders["images"][stem] for stem in stems),
        masks,
        class_members(ids, shown),
        {class_id: class_id for class_id in ids},
        IGNORE,
        tables,
    )
    return InstanceClasses(examples, names, tuple(rows))


def _categories(items: object, where: str) -> tuple[dict[int, int], tuple[str, ...]]:
    """The class id of each category id, and the names."""
    if not isinstance(items, list) or not 0 < len(items) < IGNORE:
        raise SourceError(f"{where}: categories is not a list of 1 to {IGNORE - 1} categories")
    names: dict[int, str] = {}
    for item in items:
        number = item.get("id") if isinstance(item, dict) else None
        if type(number) is not int or not isinstance(item.get("name"), str) or number in names:
            raise SourceError(f"{where} has the category {item!r}; allowed: an id of its own and a name")
        names[number] = item["name"]
    order = sorted(names)
    return {number: place for place, number in enumerate(order, start=1)}, tuple(names[number] for number in order)


def _table(items: object, numbers: Mapping[int, int], where: str) -> NDArray[np.uint8]:
    """The class id of each instance of one image, (65536,) uint8; 0 for what no annotation names."""
    if not isinstance(items, Sequence) or not all(isinstance(item, dict) for item in items):
        raise SourceError(f"{where} is not a list of annotations")
    table = np.zeros(_INSTANCES, np.uint8)
    for item in items:
        instance, category = item.get("instance", 0), item.get("category_id")
        if type(instance) is not int or not 0 <= instance < _INSTANCES or category not in numbers:
            raise SourceError(
                f"{where} has the instance {instance!r} of the category {category!r}; allowed: 0 to {_INSTANCES - 1}, "
                "of the file's categories"
            )
        if instance:
            table[instance] = IGNORE if item.get("iscrowd") else numbers[category]
    return table
