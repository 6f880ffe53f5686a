"""Images with one label each: in a folder for each class, or listed by a table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgevis.data.files import Files, open_files
from edgevis.data.splits import rows_of_split
from runtime.errors import SourceError
from runtime.images.decode import Image
from runtime.images.folders import images_of


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImages:
    """Paths and labels; an image is decoded when it is asked for. May serve as a PyTorch data set.

    Attributes:
        files: Where the images lie.
        names: N paths in it.
        labels: N labels.
        classes: The different labels, sorted.
        targets: N positions in ``classes``.
    """

    files: Files
    names: tuple[str, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    targets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, int]:
        """One image, (H, W, 3) uint8 BGR, and its target; SourceError when it cannot be decoded."""
        return self.files.image(self.names[index]), self.targets[index]


def read_class_folders(path: str | os.PathLike[str], *, inside: str = "") -> LabelledImages:
    """Every image below a folder or in a zip; its label is the folder that it lies in.

    Where folders lie in folders (Omniglot: alphabet, character), the label is all of them from the first at which
    paths differ, such as ``Greek/character07``. Images come in the order of their paths.

    Args:
        path: A folder or a zip.
        inside: The folder in it that the class folders lie in, such as ``train``, where there are others beside it.

    Raises:
        SourceError: There is no such folder or zip, it holds no images, or one lies in no class folder.
    """
    files = open_files(path, inside=inside)
    names = images_of(files.names)
    if not names:
        raise SourceError(f"{files.path} holds no images in {inside or 'it'}")
    parents = [PurePosixPath(name).parts[:-1] for name in names]
    shared = shared_folders(parents)
    if any(len(parent) == shared for parent in parents):
        stray = next(name for name, parent in zip(names, parents, strict=True) if len(parent) == shared)
        raise SourceError(f"{files.where(stray)} lies in no class folder; one is needed for each class")
    return labelled(files, names, ["/".join(parent[shared:]) for parent in parents])


def read_class_table(
    path: str | os.PathLike[str], *, label: str = "class_name", split: str | None = None, table: str = "labels.csv"
) -> LabelledImages:
    """The images that a CSV table lists in its column ``path``, in its order.

    Args:
        path: A folder or a zip.
        label: The column that holds the label.
        split: Only rows with this value in the column ``split``; None for all.
        table: The table's name.

    Raises:
        SourceError: There is no such folder or zip, the table lacks a column, a row has no label or names an image
            that is not there, or no row fits.
    """
    files = open_files(path)
    rows = rows_of_split(files, table, ("path", label), split)
    for row in rows:
        if not row[label]:
            raise SourceError(f"{files.where(table)} gives {row['path']} no {label}")
    names = [files.listed(row["path"], table) for row in rows]
    return labelled(files, names, [row[label] for row in rows])


def shared_folders(parents: Sequence[tuple[str, ...]]) -> int:
    """The number of leading folders that all paths share, not counting the last folder of a path."""
    first, last = min(parents), max(parents)
    most = min(len(parent) for parent in parents) - 1
    for place in range(most):
        if first[place] != last[place]:
            return place
    return max(most, 0)


def labelled(files: Files, names: Sequence[str], labels: Sequence[str]) -> LabelledImages:
    """Images with these labels; the classes are those that occur."""
    classes = tuple(sorted(set(labels)))
    place = {label: index for index, label in enumerate(classes)}
    return LabelledImages(files, tuple(names), tuple(labels), classes, tuple(place[label] for label in labels))
