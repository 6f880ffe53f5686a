"""Detection: which images train, which validate, and which evaluate; see :mod:`edgevis.data.image_split`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgevis.data import detection_coco, detection_tables, detection_voc
from edgevis.data.detection import DetectionImages, chosen_classes
from edgevis.data.files import Files, open_files
from edgevis.data.image_split import columns_of, groups_of, split_images
from edgevis.data.leakage import SplitCheck
from edgevis.data.splits import NO_SPLIT, rows_having
from runtime.errors import InputError, SourceError


@dataclass(frozen=True, slots=True, eq=False)
class DetectionSplit:
    """Positions of images.

    Attributes:
        data: All of them, with the boxes of the classes to learn.
        annotated: The same images with all of their annotations.
        train, validation, test: What each does; the last two may be empty.
        notes: What the report must say of the data, by name.
    """

    data: DetectionImages
    annotated: DetectionImages
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    notes: dict[str, object]


def read_detection_images(path: Path, *, check: SplitCheck | None = None) -> DetectionImages:
    """The images and boxes of a folder or zip in any of the known layouts.

    Args:
        path: The data.
        check: Told how many masks are read.

    Raises:
        SourceError: The data are in none of these layouts, or cannot be read.
    """
    files = open_files(path)
    layout = layout_of(files)
    if layout == "voc":
        return detection_voc.read_voc(files)
    if layout == "tables":
        return detection_tables.read_tables(files, progress=(check or SplitCheck()).progress)
    if layout == "coco":
        return detection_coco.read_coco(files, detection_coco.annotation_files(files))
    raise SourceError(
        f"{path} has no boxes in a known layout; allowed: COCO's JSON (annotations/instances_train.json), PASCAL VOC's "
        f"folders ({detection_voc.ANNOTATIONS}/, {detection_voc.IMAGES}/), or images/ with "
        f"{detection_tables.SAMPLE}, {detection_tables.BOXES}, {detection_tables.INSTANCES}/ or masks/"
    )


def holds_boxes(path: Path) -> bool:
    """Whether the files of a folder or zip are named as one of the known layouts names them.

    Raises:
        SourceError: There is no such folder or zip, or it cannot be read.
    """
    return layout_of(open_files(path)) is not None


def layout_of(files: Files) -> Literal["voc", "tables", "coco"] | None:
    """The layout that files are named as; None where they are named as none."""
    folders = {name.partition("/")[0] for name in files.names if "/" in name}
    if {detection_voc.ANNOTATIONS, detection_voc.IMAGES} <= folders:
        return "voc"
    if detection_tables.BOXES in files.names or {"masks", detection_tables.INSTANCES} & folders or _is_sample(files):
        return "tables"
    return "coco" if detection_coco.annotation_files(files) else None


def split_detection(
    path: Path, *, classes: str, where: str, held_out: float, seed: int, check: SplitCheck
) -> DetectionSplit:
    """Read a data set's listing and divide it.

    Args:
        path: A folder or zip, see :func:`read_detection_images`.
        classes: The names of the classes to learn, separated by commas; empty for all.
        where: ``column=value`` of ``index.csv``: the value that images which train or validate must have; empty for
            all. Images that evaluate need not have it.
        held_out: The share of the training images that only validates, where no split says.
        seed: Draws what no split decides.
        check: Refuses what both sides share, or reports it.

    Raises:
        SourceError: The data cannot be read.
        InputError: There is no such class or column, nothing is left to train on, no training image has a box, or the
            sides share what they must not.
    """
    annotated = read_detection_images(path, check=check)
    data = chosen_classes(annotated, classes)
    if data.roles is not None:
        _require_sides(data)
    split = split_images(
        data.files,
        data.names,
        data.roles,
        groups=groups_of(data.rows),
        order=data.names,
        held_out=held_out,
        seed=seed,
        check=check,
        columns=columns_of(data.rows),
    )
    train, validation = (rows_having(data.rows, places, where) for places in (split.train, split.validation))
    if not sum(data.labels[place].objects for place in train):
        raise InputError(f"{path}: none of the {len(train)} training images has a box of {', '.join(data.classes)}")
    if split.test and not sum(data.labels[place].objects for place in split.test):
        raise InputError(f"{path}: no image that evaluates has a box of {', '.join(data.classes)}")
    if not sum(data.labels[place].objects for place in validation):
        validation = ()  # a draw without an object: there is no average precision to choose by
    return DetectionSplit(data, annotated, train, validation, split.test, {**data.notes, **split.notes})


def _is_sample(files: Files) -> bool:
    """Whether ``annotations.json`` is a table of stems; COCO's own format has a list of images."""
    if detection_tables.SAMPLE not in files.names:
        return False
    content = detection_coco.read_json(files, detection_tables.SAMPLE)
    return isinstance(content, dict) and isinstance(content.get("images"), dict)


def _require_sides(data: DetectionImages) -> None:
    roles = set(data.roles or ())
    if "train" not in roles or not roles & {"val", "test"}:
        lacking = "train" if "train" not in roles else "val or test"
        raise SourceError(f"{data.files.path} has no image of the split {lacking}; {NO_SPLIT}")
