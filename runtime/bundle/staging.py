"""Write a bundle atomically: it is staged in a folder beside its path and renamed when complete."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from runtime.bundle.bundle import MANIFEST, SUFFIX, Bundle, sha256
from runtime.bundle.manifest import FileRecord, Manifest
from runtime.common.files import abandoned_folders, atomic_write, scratch_folder
from runtime.errors import BundleNotFoundError, SchemaError

_OLD = "old"
_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h


@contextmanager
def staged_bundle(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder for a bundle's files; it replaces the bundle at ``path`` when the block ends.

        with staged_bundle("reid.edgevis") as folder:
            ...  # write engines and golden arrays
            write_manifest(folder, manifest)

    When the block raises, ``path`` is left as it was and the folder is removed.

    Args:
        path: Where the bundle shall be; its name must end in ``.edgevis``.

    Raises:
        BundleNotFoundError: ``path`` exists and is not a bundle, so it is not replaced; or the block wrote no manifest.
        SchemaError: The name is not a bundle's, or the manifest names a file that was not written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise SchemaError(f"{path}: a bundle's name ends in {SUFFIX}")
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleNotFoundError(f"{path} exists and is not a bundle: it is left as it is; name another output")
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    for left in abandoned_folders(prefix, path.parent):  # by builds that were killed
        _put_back(left, path)
        shutil.rmtree(left, ignore_errors=True)
    with scratch_folder(prefix, parent=path.parent) as work:
        try:
            staged = work / "new"
            staged.mkdir()
            yield staged
            Bundle(staged)  # the manifest can be read, and names files that are there
            if not path.exists() or not exchange_folders(staged, path):
                if path.exists():
                    path.rename(work / _OLD)  # a crash before the next line leaves the old bundle here
                staged.rename(path)
        finally:
            _put_back(work, path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a staged folder; ``files`` of it is filled in from what is in the folder."""
    complete = replace(manifest, files=_record_files(folder))
    with atomic_write(folder / MANIFEST) as file:
        file.write(complete.dumps().encode())


def unfinished_bundle(folder: Path, manifest: Manifest) -> Bundle:
    """A bundle that is being built: the present files in ``folder`` and the manifest that will be written."""
    return Bundle.of_manifest(folder, replace(manifest, files=_record_files(folder)))


def _put_back(work: Path, path: Path) -> None:
    """Restore the name of a bundle whose replacement was interrupted."""
    if not path.exists() and (work / _OLD).exists():
        (work / _OLD).rename(path)


def exchange_folders(one: Path, other: Path) -> bool:
    """Exchange two folders atomically; False where Linux's renameat2 is not supported."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # another system or a C library before glibc 2.28
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _record_files(folder: Path) -> dict[str, FileRecord]:
    records = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a manifest on disk must not name files that a power cut took
        records[path.relative_to(folder).as_posix()] = FileRecord(path.stat().st_size, sha256(path))
    return records
