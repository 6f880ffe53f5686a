"""Pictures and tables that the splits of training data are tested with."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edgevis.data.leakage import SplitCheck

ALLOWED = SplitCheck(allow_leakage=True)


def write_image(path: Path, seed: int, size: tuple[int, int] = (8, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def write_table(path: Path, rows: Sequence[Sequence[object]], separator: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
