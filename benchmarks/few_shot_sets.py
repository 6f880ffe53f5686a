"""Several data sets in one: ``python -m benchmarks.few_shot_sets grocery_dev.zip caltech101_dev.zip --output all.zip``.

Writes a zip with ``labels.csv`` for ``edgevis train efficientnet-lite0 --recipe general``: all images, bytes unchanged.
Classes become ``SET/CLASS``. Those of the split ``base`` train; those of ``val``, in the order of their names, validate
and evaluate in turn.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevis.data.files import open_files
from runtime.common.command import run_command
from runtime.common.files import atomic_write


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A row of the table.

    Attributes:
        path: In the zip.
        label: ``SET/CLASS``.
        split: ``train``, ``val`` or ``test``.
        data: The file's bytes.
    """

    path: str
    label: str
    split: str
    data: bytes


def from_table(path: Path) -> Iterator[Picture]:
    """The images of a table with the splits ``base`` and ``val``; the set is the file's name up to ``_``."""
    files, name = open_files(path), path.stem.partition("_")[0]
    rows = files.table("labels.csv", ("path", "class_name", "split"))
    held = sorted({row["class_name"] for row in rows if row["split"] == "val"})
    for row in rows:
        split = "train" if row["split"] == "base" else ("val", "test")[held.index(row["class_name"]) % 2]
        yield Picture(f"{name}/{row['path']}", f"{name}/{row['class_name']}", split, files.read(row["path"]))


def write(pictures: Sequence[Picture], path: Path) -> None:
    """Write the zip; the same pictures give the same bytes."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("path", "class_name", "split"))
    writer.writerows((item.path, item.label, item.split) for item in pictures)
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("labels.csv", table.getvalue().encode()), *((item.path, item.data) for item in pictures)):
            archive.writestr(zipfile.ZipInfo(name), data)  # dated 1980


def main(argv: Sequence[str] | None = None) -> int:
    """Read the sets, write the zip and say what is in it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_shot_sets", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("sets", type=Path, nargs="+", metavar="ZIP", help="images with labels.csv, base and val")
    parser.add_argument("--output", type=Path, required=True, metavar="ZIP")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    pictures = [item for path in arguments.sets for item in from_table(path)]
    write(pictures, arguments.output)
    for split in ("train", "val", "test"):
        items = [item for item in pictures if item.split == split]
        sys.stdout.write(f"{split}: {len(items)} images of {len({item.label for item in items})} classes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
