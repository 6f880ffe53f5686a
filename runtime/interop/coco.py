"""Detections and instances as COCO JSON: results for evaluation against an annotation file, or a data set.

Format: https://cocodataset.org/#format-data and #format-results. A box is left, top, width, height in pixels.
What is given as :class:`runtime.results_instances.Instance` has its outline as ``segmentation``, a polygon.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from runtime.common.json_data import parse_json
from runtime.common.limits import max_file_bytes
from runtime.errors import InputError, SchemaError, SourceError
from runtime.images.polygons import polygon_area
from runtime.interop.boxes import LabelledBox, sized_box


@dataclass(frozen=True)
class CocoIds:
    """The ids that an annotation file gives to its images and categories.

    Attributes:
        images: ``file_name`` to image id.
        categories: Category name to category id.
        source: The file, for messages.
    """

    images: Mapping[str, int]
    categories: Mapping[str, int]
    source: str

    def image(self, path: str | os.PathLike[str]) -> int:
        """The id of an image by the end of its path; InputError if none or several images of the file have it."""
        parts = PurePath(path).parts
        for length in range(len(parts), 0, -1):
            name = "/".join(parts[-length:])
            if name in self.images:
                return self.images[name]
        same = [name for name in self.images if PurePath(name).name == parts[-1]]
        if len(same) == 1:
            return self.images[same[0]]
        problem = f"names {len(same)} images" if same else "names no image"
        raise InputError(f"{self.source} {problem} {parts[-1]}; give the images that it annotates")

    def category(self, label: str) -> int:
        """The id of a category; InputError if the file has none of that name."""
        if label not in self.categories:
            known = ", ".join(list(self.categories)[:20])
            raise InputError(f"{self.source} has no category {label!r}; it has {known}")
        return self.categories[label]


def read_coco_ids(path: str | os.PathLike[str]) -> CocoIds:
    """Read the ids of an annotation file.

    Raises:
        SourceError: It cannot be read, is larger than files may be, or is no COCO annotation file.
    """
    file = Path(path)
    try:
        if file.stat().st_size > max_file_bytes():
            raise SourceError(f"{file} has more than {max_file_bytes()} bytes")
        data = parse_json(file.read_bytes())
        images = {str(item["file_name"]): int(item["id"]) for item in data["images"]}
        categories = {str(item["name"]): int(item["id"]) for item in data["categories"]}
    except SourceError:  # is an OSError, too
        raise
    except (OSError, SchemaError, KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{file} cannot be read as COCO annotations: {error!r}; needed: JSON with images (id, file_name) and "
            "categories (id, name)"
        ) from error
    return CocoIds(images, categories, file.name)


def coco_results(path: str | os.PathLike[str], detections: Iterable[LabelledBox], ids: CocoIds) -> list[dict[str, Any]]:
    """The entries of one image in a COCO results file, which ``pycocotools.coco.COCO.loadRes`` reads.

    Args:
        path: The image, by whose name the annotation file has its id.
        detections: What was found in it.
        ids: The ids of the annotation file.

    Raises:
        InputError: The annotation file has no such image, or no category of a label.
    """
    image_id = ids.image(path)
    return [
        {
            "image_id": image_id,
            "category_id": ids.category(item.label),
            "bbox": list(sized_box(item.box_xyxy)),
            "score": round(float(item.score), 6),
            **_segmentation(item),
        }
        for item in detections
    ]


def coco_dataset(
    images: Iterable[tuple[str, tuple[int, int], Iterable[LabelledBox]]], labels: Sequence[str]
) -> dict[str, Any]:
    """A COCO data set of detections, which annotation tools import; each annotation has its ``score``, too.

    Args:
        images: For each image its name, its size (H, W), and what was found in it.
        labels: The model's labels; the first is category 1.
    """
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, (height, width), detections) in enumerate(images, start=1):
        entries.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for item in detections:
            box, outline = sized_box(item.box_xyxy), _segmentation(item)
            area = polygon_area(np.array(outline["segmentation"][0])) if outline else box[2] * box[3]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": item.class_id + 1,
                    "bbox": list(box),
                    "area": round(area, 2),
                    "iscrowd": 0,
                    "score": round(float(item.score), 6),
                    **outline,
                }
            )
    categories = [{"id": index, "name": label} for index, label in enumerate(labels, start=1)]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _segmentation(item: LabelledBox) -> dict[str, Any]:
    """The outline of an instance as COCO has it, x and y in turn to hundredths of a pixel; nothing of a mere box."""
    polygon = getattr(item, "polygon", None)
    return (
        {} if polygon is None else {"segmentation": [[round(float(value), 2) for point in polygon for value in point]]}
    )
