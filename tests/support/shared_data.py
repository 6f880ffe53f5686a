"""Real images and weights that are not part of the repository; ``EDGEVIS_TEST_DATA`` names their folder."""

import os
from pathlib import Path

import pytest

VARIABLE = "EDGEVIS_TEST_DATA"


def shared_data(*parts: str) -> Path:
    """The file or folder of that name below ``$EDGEVIS_TEST_DATA``; skips the test where it is absent."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"needs {'/'.join(parts)} in the folder that {VARIABLE} names; it is not part of the repository")
    path = Path(folder).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}, which does not exist; {VARIABLE} names the folder")
    return path
