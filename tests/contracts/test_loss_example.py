"""The loss of docs/extending.md: a function in a package of one's own trains a model."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import doc_pages
from training_data import write_masks

pytestmark = [pytest.mark.torch]

_NAME = "tests/contracts/test_loss_example.py"
BLOCKS = [block for block in doc_pages.blocks("docs/extending.md") if block.reason == _NAME]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's package ``shelf`` in the working folder."""
    (source,) = (block.code for block in BLOCKS if block.language == "python")
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "__init__.py").touch()
    (tmp_path / "shelf" / "losses.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("shelf", "shelf.losses"):
        sys.modules.pop(name, None)


def test_a_training_with_the_page_s_loss(shelf: None, tmp_path: Path) -> None:
    write_masks(tmp_path / "cells", images=10, side=32)
    (command,) = (block.code for block in BLOCKS if block.language == "sh")
    assert doc_pages.run(f"{command.strip()} --set epochs=1 --set batch=2 --set steps_per_epoch=2 --quiet") == 0
    with (tmp_path / "runs" / "enet" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1
    values = [float(value) for row in rows for name, value in row.items() if "focal_tversky" in name]
    assert len(values) == 1
    assert all(0 < value < 1 for value in values)
