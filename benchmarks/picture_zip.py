"""Writes data sets of pictures with masks, as zips that are the same bytes each time."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

_QUALITY = 92


class PictureZip:
    """A zip with ``images/STEM.jpg``, ``FOLDER/STEM.png`` and ``index.csv``.

    Args:
        path: The zip.
        masks: FOLDER, such as ``masks``.
        columns: Of ``index.csv``, after ``stem``; the first is the split.
    """

    def __init__(self, path: Path, *, masks: str, columns: tuple[str, ...]) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._masks, self._columns = masks, columns
        self.rows: list[tuple[str, ...]] = []

    def add(self, image: NDArray[Any], mask: NDArray[Any], *values: str) -> str:
        """Write a picture (H, W, 3) uint8 BGR, its mask (H, W) uint8 or uint16 and its row; returns its stem."""
        stem = f"{len(self.rows):06}"
        for name, pixels, extra in (
            (f"images/{stem}.jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]),
            (f"{self._masks}/{stem}.png", mask, []),
        ):
            _, coded = cv2.imencode(name[-4:], pixels, extra)
            self._zip.writestr(_entry(name), coded.tobytes())
        self.rows.append((stem, *values))
        return stem

    def close(self, files: Mapping[str, object]) -> None:
        """Write ``index.csv`` and these JSON files by their names."""
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([("stem", *self._columns), *self.rows])
        self._zip.writestr(_entry("index.csv"), table.getvalue())
        for name, content in files.items():
            self._zip.writestr(_entry(name), json.dumps(content))
        self._zip.close()


def _entry(name: str) -> zipfile.ZipInfo:
    """With one date, so that the file is the same each time."""
    return zipfile.ZipInfo(name)
