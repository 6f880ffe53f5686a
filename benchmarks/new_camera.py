"""Data for adapting to a new camera: ``python -m benchmarks.new_camera reid.zip --camera 2 --output DIR``.

Of a Re-ID set with ``labels.csv``, the training persons keep their labels in the pictures of all other cameras, in
``DIR/labelled``, beside the queries and the gallery as they are; their pictures by the new camera lie in
``DIR/unlabelled`` without names, as those of a camera that was hung up yesterday.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from edgevis.data.files import open_files
from runtime.common.command import run_command
from runtime.common.files import atomic_write
from runtime.errors import InputError

COLUMNS = ("path", "pid", "camid", "split")
LABELS = "labels.csv"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the two folders; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.new_camera", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", metavar="PATH", type=Path, help="a folder or zip with labels.csv")
    parser.add_argument("--camera", metavar="N", required=True, help="whose pictures lose their labels")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def divide(data: Path, camera: str, output: Path) -> tuple[int, int]:
    """Write both folders; returns the numbers of labelled training pictures and of pictures without labels.

    Raises:
        InputError: No training picture is by that camera, or none by another one.
        SourceError: The data cannot be read.
        OSError: The folders cannot be written.
    """
    files = open_files(data)
    rows = files.table(LABELS, COLUMNS)
    new = [row for row in rows if row["split"] == "train" and row["camid"] == camera]
    kept = [row for row in rows if not (row["split"] == "train" and row["camid"] == camera)]
    labelled = sum(row["split"] == "train" for row in kept)
    if not new or not labelled:
        cameras = sorted({row["camid"] for row in rows if row["split"] == "train"})
        raise InputError(
            f"camera is {camera!r}; allowed: one of several of the training pictures: {', '.join(cameras)}"
        )
    for row in kept:
        _write(output / "labelled" / row["path"], files.read(files.listed(row["path"], LABELS)))
    with (output / "labelled" / LABELS).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(kept)
    for number, row in enumerate(new):
        path = output / "unlabelled" / f"{number:05}{Path(row['path']).suffix}"
        _write(path, files.read(files.listed(row["path"], LABELS)))
    return labelled, len(new)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(data)


def _run(arguments: argparse.Namespace) -> int:
    labelled, unlabelled = divide(arguments.data, arguments.camera, arguments.output)
    sys.stdout.write(f"{arguments.output}: {labelled} labelled training pictures, {unlabelled} without labels\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
