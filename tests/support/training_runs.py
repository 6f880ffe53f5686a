"""Runs of ``edgevis.train`` inside the test process."""

from __future__ import annotations

import csv
from pathlib import Path

from edgevis.train import main

SMALL_ENET = ["enet", "--recipe", "small", "--option", "side=32", "--set", "batch=2", "--set", "steps_per_epoch=3"]


def trained(*arguments: object) -> None:
    assert main([*map(str, arguments), "--quiet"]) == 0


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))
