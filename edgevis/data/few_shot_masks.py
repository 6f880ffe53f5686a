"""Few-shot segmentation: images with masks, and which of them show which class.

Layouts: PASCAL-5i (Shaban, Bansal, Liu, Essa, Boots, BMVC 2017, on PASCAL VOC 2012 with the masks of SBD), COCO-20i
(Nguyen, Todorovic, ICCV 2019, on COCO 2014) and FSS-1000 (Li, Wei, Chen, Tai, Tang, CVPR 2020), in the folders that
HSNet (Min, Kang, Cho, ICCV 2021) and its successors read. Provenance: our own code. Licence: as the rest of edgevis.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edgevis.data.checks import at_least, integer
from edgevis.data.files import Files, open_files
from edgevis.data.masks import IGNORE, as_class_ids, read_class_ids, read_pair
from edgevis.data.segmentation import MaskedImages
from runtime.errors import InputError, SourceError
from runtime.images.decode import Image

FOLDS = 4
PASCAL_CLASSES, COCO_CLASSES = 20, 80

Split = Literal["train", "val"]

# FSS-1000 stores masks as grey pictures.
_FSS_THRESHOLD = 128


@dataclass(frozen=True, slots=True, eq=False)
class ClassMask:
    """One image seen as an example of one class.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        mask: (H, W) bool: the class. Ignored pixels are background here, as they are in training by the papers.
        ignore: (H, W) bool: pixels that measures leave out.
    """

    image: Image
    mask: NDArray[np.bool_]
    ignore: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class ClassMasks:
    """Paths of images and masks, and which show which class; both are decoded when asked for.

    Attributes:
        files: Where they lie.
        images, masks: N paths each.
        members: Each class id with the positions of the images that show it, sorted.
        values: The mask value of each class id; None where a mask is a grey picture of one class.
        ignore: The mask value of pixels that count nowhere; None where there is none.
        tables: Of masks that hold instance ids: the value that each id stands for, by the mask's path.
        set_aside: Mask values of classes that must not be learned as background: ignored, too.
    """

    files: Files
    images: tuple[str, ...]
    masks: tuple[str, ...]
    members: Mapping[int, tuple[int, ...]]
    values: Mapping[int, int] | None
    ignore: int | None
    tables: Mapping[str, NDArray[np.uint8]] | None = None
    set_aside: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, position: int, class_id: int) -> ClassMask:
        """One image as an example of one class.

        Raises:
            InputError: There is no such class.
            SourceError: The image or mask cannot be decoded, or they are not equally large.
        """
        if class_id not in self.members:
            raise InputError(f"there is no class {class_id}; allowed: {', '.join(map(str, self.members))}")
        names = self.images[position], self.masks[position]
        image, stored, as_stored = read_pair(self.files, *names)
        if self.tables is not None:
            stored = self.tables[names[1]][stored]
        if self.values is None:
            mask = stored > 0 if as_stored.from_alpha else stored >= _FSS_THRESHOLD
        else:
            mask = as_class_ids(stored, self.files.where(names[1])) == self.values[class_id]
        ignored = np.zeros_like(mask) if self.ignore is None else stored == self.ignore
        if self.set_aside:
            ignored |= np.isin(stored, self.set_aside)
        return ClassMask(image, mask, ignored)


def pascal_fold(fold: int) -> tuple[int, ...]:
    """The class ids (0 to 19, the mask's value less one) that are new in a fold of PASCAL-5i: five in a row."""
    check_fold(fold)
    count = PASCAL_CLASSES // FOLDS
    return tuple(range(fold * count, (fold + 1) * count))


def coco_fold(fold: int) -> tuple[int, ...]:
    """The class ids (0 to 79, the mask's value less one) that are new in a fold of COCO-20i: each fourth."""
    check_fold(fold)
    return tuple(range(fold, COCO_CLASSES, FOLDS))


def read_pascal5i(
    path: str | os.PathLike[str],
    *,
    fold: int,
    split: Split,
    lists: str | os.PathLike[str] | None = None,
    inside: str = "",
) -> ClassMasks:
    """One fold of PASCAL-5i: ``train`` has the other folds' classes, ``val`` the fold's own.

    Class ids are 0 to 19, mask values 1 to 20, 255 is ignored.

    Args:
        path: The folder or zip of VOC2012, with ``JPEGImages`` and ``SegmentationClassAug``.
        fold: 0 to 3.
        split: ``train`` or ``val``.
        lists: A folder or zip with ``trn/foldI.txt`` and ``val/foldI.txt``, whose lines are ``2007_000039__20``: an
            image and the mask value of a class that it shows (the published lists of the benchmark). Without it, all
            masks that ``ImageSets/Segmentation/train.txt`` or ``val.txt`` names are read to see what they show.
        inside: The folder in ``path`` that they lie in, such as ``VOCdevkit/VOC2012``.

    Raises:
        InputError: There is no such fold or split.
        SourceError: A folder, list, image or mask is missing, or a line of a list has another form.
    """
    new = pascal_fold(fold)
    selected = _wanted(new, PASCAL_CLASSES, split)
    files = open_files(path, inside=inside)
    if lists is None:
        stems = files.text(f"ImageSets/Segmentation/{split}.txt").split()
        return _scanned(
            files, *_pascal_paths(files, stems), {class_id: class_id + 1 for class_id in selected}, IGNORE, Visible()
        )
    listing = open_files(lists)
    folds = [fold] if split == "val" else [other for other in range(FOLDS) if other != fold]
    shown: dict[str, list[int]] = {}
    for number in folds:
        name = f"{'val' if split == 'val' else 'trn'}/fold{number}.txt"
        for line in listing.text(name).split():
            match = re.fullmatch(r"(.+)__([0-9]{1,2})", line)
            class_id = int(match[2]) - 1 if match else -1
            if match is None or class_id not in selected:
                raise SourceError(
                    f"{listing.where(name)} has the line {line!r}; needed: an image, __ and a class of it"
                )
            shown.setdefault(match[1], []).append(class_id)
    images, masks = _pascal_paths(files, list(shown))
    members = class_members(selected, shown.values())
    return ClassMasks(files, images, masks, members, {class_id: class_id + 1 for class_id in selected}, IGNORE)


def read_coco20i(
    path: str | os.PathLike[str],
    *,
    fold: int,
    split: Split,
    lists: str | os.PathLike[str] | None = None,
    inside: str = "",
) -> ClassMasks:
    """One fold of COCO-20i: ``train`` has the other folds' classes in ``train2014``, ``val`` its own in ``val2014``.

    Class ids are 0 to 79 in the order of COCO's category ids, mask values 1 to 80, 0 is background.

    Args:
        path: The folder or zip of COCO2014: ``train2014/*.jpg``, ``val2014/*.jpg`` and their masks
            ``annotations/train2014/*.png``, ``annotations/val2014/*.png``.
        fold: 0 to 3.
        split: ``train`` or ``val``.
        lists: A JSON file: an object from class id to a list of image paths such as ``train2014/NAME.jpg``. (The
            benchmark's own lists are pickles, which are never read: they can run code.) Without it, all masks of the
            split are read to see what they show, which takes minutes.
        inside: The folder in ``path`` that they lie in.

    Raises:
        InputError: There is no such fold or split.
        SourceError: A folder, image or mask is missing, or the lists have another form.
    """
    selected = _wanted(coco_fold(fold), COCO_CLASSES, split)
    files = open_files(path, inside=inside)
    values = {class_id: class_id + 1 for class_id in selected}
    if lists is None:
        images = [name for name in files.below(f"{split}2014") if name.endswith(".jpg")]
        return _scanned(files, *_coco_paths(files, images), values, None, Visible())
    file = os.path.basename(os.fspath(lists))
    listing = open_files(os.path.dirname(os.path.abspath(lists)))
    table = listing.json(file)
    if not isinstance(table, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in table.values()
    ):
        raise SourceError(f"{listing.where(file)} is not an object from class id to a list of image paths")
    shown: dict[str, list[int]] = {}
    for key, names in table.items():
        class_id = integer(key, f"a class id in {listing.where(file)}")
        if class_id in selected:
            for name in names:
                shown.setdefault(name, []).append(class_id)
    images_found, masks = _coco_paths(files, list(shown))
    return ClassMasks(files, images_found, masks, class_members(selected, shown.values()), values, None)


def read_fss1000(path: str | os.PathLike[str], *, classes: Sequence[str] | None = None, inside: str = "") -> ClassMasks:
    """FSS-1000: a folder for each class with ``N.jpg`` and ``N.png``, a grey picture (128 and more: the class).

    Class ids are positions in the sorted names of the classes.

    Args:
        path: A folder or zip.
        classes: The names of one split (the benchmark has 520, 240 and 240); None for all.
        inside: The folder in ``path`` that the class folders lie in.

    Raises:
        SourceError: There is no such folder or zip, a class has no images, or an image has no mask.
    """
    files = open_files(path, inside=inside)
    by_class: dict[str, list[str]] = {}
    for name in files.names:
        parts = PurePosixPath(name).parts
        if len(parts) == 2 and name.endswith(".jpg"):
            by_class.setdefault(parts[0], []).append(name)
    selected = sorted(by_class if classes is None else set(classes))
    images: list[str] = []
    members: dict[int, tuple[int, ...]] = {}
    for class_id, name in enumerate(selected):
        if name not in by_class:
            raise SourceError(f"{files.path} has no folder {files.inside}{name} with images N.jpg")
        members[class_id] = tuple(range(len(images), len(images) + len(by_class[name])))
        images += by_class[name]
    if not images:
        raise SourceError(f"{files.path} has no class folders with images N.jpg")
    masks = [files.require(f"{name[:-4]}.png", f"the mask of {name}") for name in images]
    return ClassMasks(files, tuple(images), tuple(masks), members, None, None)


@dataclass(frozen=True, slots=True)
class Visible:
    """The least area of a class that makes an image an example of it. Each image is measured at its own size.

    Attributes:
        min_pixels: From this many pixels on.
        min_share: From this share of the image's pixels on.
        size: A network's (height, width) where something of the class must be left, or None. Lines of one pixel have a
            tenth of an image's pixels, and none at a tenth of its size.

    Raises:
        InputError: ``min_pixels`` is below 1, or ``min_share`` not from 0 to 1.
    """

    min_pixels: int = 1
    min_share: float = 0.0
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        at_least("min_pixels", self.min_pixels, 1)
        if not 0 <= self.min_share <= 1:
            raise InputError(f"min_share is {self.min_share}; allowed: 0 to 1")

    def values(self, mask: NDArray[np.uint8]) -> list[int]:
        """The values of a mask, (H, W), that cover enough pixels."""
        pixels = np.bincount(mask.ravel(), minlength=256)
        shown = (pixels >= self.min_pixels) & (pixels >= self.min_share * mask.size)
        if self.size is not None:
            # The same resizing as in the tasks and the runtime.
            seen = cv2.resize(mask, self.size[::-1], interpolation=cv2.INTER_NEAREST)
            shown &= np.bincount(seen.ravel(), minlength=256) > 0
        return [int(value) for value in np.flatnonzero(shown)]

    def __str__(self) -> str:
        parts = [f"{self.min_pixels} pixels"] if self.min_pixels > 1 or not self.min_share else []
        parts += [f"{self.min_share:g} of its pixels"] if self.min_share else []
        return " and ".join(parts) + (f", left at {self.size[0]} x {self.size[1]}," if self.size else "")


def examples_by_class(data: MaskedImages, visible: Visible) -> Counter[int]:
    """The number of images that are examples of each class from 1 to 254; all masks are read.

    Raises:
        SourceError: A mask cannot be read.
    """
    return Counter(value for values in shown_classes(data, visible) for value in values)


def class_masks(data: MaskedImages, *, class_ids: Collection[int], visible: Visible = Visible()) -> ClassMasks:
    """Images with masks of many classes as examples of single ones; all masks are read once to see what they show.

    Class ids are the masks' values; 255 is ignored.

    Args:
        data: Images with masks.
        class_ids: The classes, each from 1 to 254.
        visible: What makes an image an example of a class.

    Raises:
        InputError: A class id is out of range, or no image shows the class.
        SourceError: A mask cannot be read.
    """
    if not class_ids or any(not 0 < class_id < IGNORE for class_id in class_ids):
        raise InputError(f"class_ids are {sorted(class_ids)}; allowed: one or more of 1 to {IGNORE - 1}")
    values = {class_id: class_id for class_id in sorted(class_ids)}
    examples = _scanned(data.files, data.images, data.masks, values, IGNORE, visible)
    for class_id, positions in examples.members.items():
        if not positions:
            raise InputError(f"no image of {data.files.path} shows {visible} or more of class {class_id}")
    return examples


def shown_classes(data: MaskedImages, visible: Visible) -> list[frozenset[int]]:
    """The classes from 1 to 254 that each image is an example of; all masks are read.

    Raises:
        SourceError: A mask cannot be read.
    """
    return [
        frozenset(value for value in visible.values(read_class_ids(data.files, name)) if 0 < value < IGNORE)
        for name in data.masks
    ]


def examples_of(
    data: MaskedImages,
    shown: Sequence[frozenset[int]],
    *,
    class_ids: Sequence[int],
    among: Iterable[int],
    set_aside: Sequence[int] = (),
) -> ClassMasks:
    """Some of the images as examples of single classes; class ids are the masks' values, 255 is ignored.

    Args:
        data: Images with masks.
        shown: What each image shows, as of :func:`shown_classes`.
        class_ids: The classes.
        among: Positions of images in ``data``; those that show none of the classes are left out.
        set_aside: See :class:`ClassMasks`.
    """
    places = [place for place in among if not shown[place].isdisjoint(class_ids)]
    members = class_members(class_ids, [shown[place] & set(class_ids) for place in places])
    return ClassMasks(
        data.files,
        tuple(data.images[place] for place in places),
        tuple(data.masks[place] for place in places),
        members,
        {class_id: class_id for class_id in class_ids},
        IGNORE,
        set_aside=tuple(set_aside),
    )


def some_examples(examples: ClassMasks, class_ids: Iterable[int], among: Iterable[int]) -> ClassMasks:
    """The images at some positions as examples of some of the classes; images that show none of them are left out."""
    chosen = {class_id: set(examples.members[class_id]) for class_id in class_ids}
    shown = {place: [class_id for class_id, seen in chosen.items() if place in seen] for place in sorted(among)}
    places = [place for place, class_ids in shown.items() if class_ids]
    return replace(
        examples,
        images=tuple(examples.images[place] for place in places),
        masks=tuple(examples.masks[place] for place in places),
        members=class_members(chosen, [shown[place] for place in places]),
    )


def check_fold(fold: int) -> None:
    """Raise InputError for a fold that does not exist."""
    if isinstance(fold, bool) or not isinstance(fold, int) or fold not in range(FOLDS):
        raise InputError(f"fold is {fold!r}; allowed: 0 to {FOLDS - 1}")


def _wanted(new: Collection[int], count: int, split: str) -> list[int]:
    if split not in ("train", "val"):
        raise InputError(f"split is {split!r}; allowed: train, val")
    return [class_id for class_id in range(count) if (class_id in new) == (split == "val")]


def _pascal_paths(files: Files, stems: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    images = tuple(files.require(f"JPEGImages/{stem}.jpg", "which a list names") for stem in stems)
    masks = tuple(files.require(f"SegmentationClassAug/{stem}.png", f"the mask of {stem}.jpg") for stem in stems)
    return images, masks


def _coco_paths(files: Files, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    images = tuple(files.require(name, "which a list names") for name in names)
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    masks = tuple(files.require(f"annotations/{stem}.png", f"the mask of {stem}.jpg") for stem in stems)
    return images, masks


def class_members(selected: Iterable[int], shown: Iterable[Collection[int]]) -> dict[int, tuple[int, ...]]:
    """The positions of the images that show each class: :attr:`ClassMasks.members`."""
    members: dict[int, list[int]] = {class_id: [] for class_id in selected}
    for position, class_ids in enumerate(shown):
        for class_id in sorted(set(class_ids)):
            members[class_id].append(position)
    return {class_id: tuple(positions) for class_id, positions in members.items()}


def _scanned(
    files: Files,
    images: Sequence[str],
    masks: Sequence[str],
    values: Mapping[int, int],
    ignore: int | None,
    visible: Visible,
) -> ClassMasks:
    """The images that show a class; every mask is read."""
    selected: list[int] = []
    shown: list[list[int]] = []
    for position, name in enumerate(masks):
        seen = set(visible.values(read_class_ids(files, name)))
        class_ids = [class_id for class_id, value in values.items() if value in seen]
        if class_ids:
            selected.append(position)
            shown.append(class_ids)
    return ClassMasks(
        files,
        tuple(images[position] for position in selected),
        tuple(masks[position] for position in selected),
        class_members(values, shown),
        values,
        ignore,
    )
