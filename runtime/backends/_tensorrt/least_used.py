"""Which files of a cache make room: the ones that were not used for longest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path


def beyond(files: Iterable[Path], limit: int, *, keep: Path | None = None) -> tuple[list[Path], int]:
    """Choose what a cache of a limited size has no room for; a file's time of change says when it was last used.

    Args:
        files: The files; one that another process deletes meanwhile is left out.
        limit: The largest size of all together, in bytes.
        keep: A file that stays in any case.

    Returns:
        The files to delete, and the bytes of those that stay. One that is too large makes room for older ones that are
        not.
    """
    found = []
    for path in files:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    dropped, total = [], 0
    for _, size, path in sorted(found, reverse=True):
        if total + size > limit and path != keep:
            dropped.append(path)
        else:
            total += size
    return dropped, total
