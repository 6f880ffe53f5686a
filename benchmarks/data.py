"""Labelled images out of a zip: ``labels.csv`` with a column ``path`` and whatever else says what an image is."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

from edgevis import SourceError
from runtime.images import Image, decode_image

Row = dict[str, str]


def read_labelled(path: Path, keep: Callable[[Row], bool] = lambda row: True) -> list[tuple[Row, Image]]:
    """The rows of ``labels.csv`` that ``keep`` takes, in its order, each with its image as (H, W, 3) uint8 BGR.

    Raises:
        SourceError: The zip, the table or an image cannot be read, or no row is kept.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("labels.csv") as table:
            rows = [row for row in csv.DictReader(io.TextIOWrapper(table, "utf-8")) if keep(row)]
            found = [(row, decode_image(archive.read(row["path"]), f"{row['path']} in {path}")) for row in rows]
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} is not a zip with labels.csv and its images: {error}") from error
    if not found:
        raise SourceError(f"{path}: labels.csv has no row that fits")
    return found
