"""The identity of a training: to resume it, data, weights, recipe and precision must be the same.

The identity is stored in the checkpoint. Beside it lies ``data.csv``, the SHA-256 of each file of the data: it says
which files have changed, and a file whose size, times and inode are the same as before need not be read again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgevis.data.files import Files, open_files
from runtime.common.files import atomic_write

DATA = "data.csv"

_COLUMNS = ("name", "sha256", "size_bytes", "stamp")
_READERS = 4
_LISTED = 3
# A file that was written in the same tick of the clock after it was hashed would look unchanged.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of the data.

    Attributes:
        name: Its path in the data, with ``/`` between folders.
        sha256: Of its content; of a file in a zip, unpacked.
        size_bytes: Of its content, unpacked.
        stamp: Size, times and inode of the file, or of the zip, when it was read; empty where they say nothing yet.
    """

    name: str
    sha256: str
    size_bytes: int
    stamp: str


def list_data(
    data: Path, *, output: Path, known: Mapping[str, DataFile] = MappingProxyType({})
) -> tuple[DataFile, ...]:
    """The files of the data, sorted by name, with the hashes of their contents.

    Args:
        data: A folder or zip, as :func:`edgevis.data.files.open_files` lists it.
        output: The training's folder: where it lies inside the data, its files do not count.
        known: Files by name whose hash is taken over where their stamp is the same.

    Raises:
        SourceError: The data cannot be listed, or a file cannot be read.
    """
    files = open_files(data, say_left_out=False)  # the task's own reader says it
    output_prefix = _inside(data, output)
    names = [name for name in files.names if not (output_prefix and name.startswith(output_prefix))]
    pool = ThreadPoolExecutor(_READERS)  # hashing and reading release the interpreter's lock
    try:
        return tuple(pool.map(lambda name: _listed(files, name, known.get(name)), names))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt need not wait for the rest


def read_listing(path: Path) -> dict[str, DataFile]:
    """The files that :func:`write_listing` wrote, by name; empty if the listing is missing or damaged."""
    try:
        rows = csv.reader(io.StringIO(path.read_bytes().decode("utf-8", "surrogateescape"), newline=""), strict=True)
        if tuple(next(rows, ())) != _COLUMNS:
            return {}
        listed = [DataFile(name, digest, int(size), stamp) for name, digest, size, stamp in rows]
    except (OSError, ValueError, csv.Error):
        return {}
    return {file.name: file for file in listed}


def write_listing(path: Path, listing: Sequence[DataFile]) -> None:
    """Write the files with their hashes as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((file.name, file.sha256, file.size_bytes, file.stamp) for file in listing)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def summary_of(listing: Sequence[DataFile]) -> dict[str, Any]:
    """Number, size and digest of the files: SHA-256 of what ``sha256sum`` prints of them, sorted by name."""
    digest = hashlib.sha256()
    for file in listing:
        digest.update(f"{file.sha256}  {file.name}\n".encode("utf-8", "surrogateescape"))
    return {
        "count": len(listing),
        "size_bytes": sum(file.size_bytes for file in listing),
        "sha256": digest.hexdigest(),
    }


def differences(was: Any, now: Any, name: str = "") -> Iterator[str]:
    """The differences between two identities: "recipe.learning_rate was 0.1, is 0.5", one sentence each."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*was, *now)):
            yield from differences(was.get(key), now.get(key), f"{name}.{key}" if name else str(key))
    elif was != now:
        yield f"{name} was {_shown(was)}, is {_shown(now)}"


def changed_files(was: Mapping[str, DataFile], now: Sequence[DataFile]) -> str:
    """Which files of the data were changed, added and removed; empty where none were."""
    names = {file.name for file in now}
    kinds = {
        "changed": [file.name for file in now if file.name in was and was[file.name].sha256 != file.sha256],
        "added": [file.name for file in now if file.name not in was],
        "removed": [name for name in was if name not in names],
    }
    return "; ".join(f"{len(group)} {kind}: {_some(group)}" for kind, group in kinds.items() if group)


def _listed(files: Files, name: str, known: DataFile | None) -> DataFile:
    stamp, newest_ns = files.stamp(name)
    if known is not None and stamp and known.stamp == stamp:
        return known
    begun = time.time_ns()
    digest, size = hashlib.sha256(), 0
    for block in files.blocks(name):
        digest.update(block)
        size += len(block)
    settled = begun - newest_ns > _SETTLED_NS and files.stamp(name)[0] == stamp
    return DataFile(name, digest.hexdigest(), size, stamp if settled else "")


def _inside(data: Path, output: Path) -> str:
    try:
        inside = output.resolve().relative_to(data.resolve()).as_posix()
    except ValueError:
        return ""
    return f"{inside}/"


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
