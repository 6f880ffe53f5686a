"""What the tests of streams read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def door(tmp_path: Path) -> Path:
    """A folder of ten pictures, of which each shows its number."""
    folder = tmp_path / "door"
    folder.mkdir()
    for index in range(10):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((8, 8, 3), index, np.uint8))
    return folder
