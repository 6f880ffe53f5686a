"""The image files of a folder: one listing for streams, prediction, enrolment, calibration and training.

Folders as people have them hold more than pictures. Left out without a word is what an operating system or a file
manager put there: names that begin with a dot (``._IMG_1.JPG``, ``.thumbnails/``, ``.git/``) and the folders of
:data:`_SYSTEM_FOLDERS`. Left out with a warning that names it is what its owner may take for a picture: a format that
OpenCV does not read here, such as HEIC, a link that leads nowhere, and what is called a picture but is no file.
A damaged picture is listed; reading it raises.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from runtime.errors import InputError, SourceError
from runtime.images.decode import SUFFIXES, UNREAD_SUFFIXES
from runtime.images.picture_files import is_drawing

_log = logging.getLogger("edgevis.images")

MAX_ENTRIES = 2_000_000
"""A folder with more files and folders than this is a mistake in the path."""

# Copies and thumbnails: of macOS's zips, Windows, Synology and QNAP.
_SYSTEM_FOLDERS = frozenset({"__macosx", "$recycle.bin", "system volume information", "@eadir", ".@__thumb"})
_LABEL_FOLDERS = frozenset({"masks", "instances"})
_SHOWN = 5


def image_files(folder: str | os.PathLike[str], *, recursive: bool = True, drawings: bool = False) -> list[Path]:
    """The image files in a folder, sorted by their paths.

    Args:
        folder: The folder; links to files and folders are followed, once around a loop.
        recursive: Whether the folders in it are searched, too.
        drawings: List what `edgevis predict` wrote, too: results that are not to be read as pictures again.

    Raises:
        SourceError: There is no such folder, it cannot be listed, or it holds no images.
        InputError: It holds more than :data:`MAX_ENTRIES` files and folders.

    Warns:
        RuntimeWarning: Pictures that are left out; the warning names them with the reason.
    """
    folder = Path(folder)
    files: list[Path] = []
    left_out: list[str] = []
    modes = dict(files_below(folder, recursive=recursive))
    for name in _without_label_images(modes):
        mode = modes[name]
        reason = why_left_out(name, mode)
        if reason is not None:
            left_out.append(reason)
        elif PurePosixPath(name).suffix.lower() in SUFFIXES and (drawings or not is_drawing(folder / name)):
            files.append(folder / name)
    if not files:
        problem = f"; left out: {_shown(left_out)}" if left_out else f" ({', '.join(sorted(SUFFIXES))})"
        raise SourceError(f"the folder {folder} holds no images{problem}")
    warn_left_out(left_out, str(folder))
    return sorted(files)


def why_left_out(name: str, mode: int | None = stat.S_IFREG) -> str | None:
    """The warning about a file that looks like an image but is not read; None for any other file.

    Args:
        name: The path below its folder.
        mode: The file's ``st_mode``; None for a dangling link.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in UNREAD_SUFFIXES:
        return f"{name} (OpenCV does not read {suffix} here: convert it to JPEG or PNG)"
    if suffix in SUFFIXES and mode is None:
        return f"{name} (a link that leads nowhere)"
    if suffix in SUFFIXES and not stat.S_ISREG(mode or 0):
        return f"{name} (not a regular file)"
    return None


def warn_left_out(reasons: Sequence[str], where: str) -> None:
    """Log the warning of :func:`why_left_out`, if there is one."""
    if reasons:
        _log.warning("left out of %s: %s", where, _shown(reasons))


def is_hidden(name: str) -> bool:
    """Whether a relative path, with ``/`` between its parts, is a hidden or system file."""
    return any(part.startswith(".") or part.lower() in _SYSTEM_FOLDERS for part in name.split("/"))


def images_of(names: Collection[str], *, label_images: bool = False) -> list[str]:
    """The relative paths with an image suffix, without label images unless these are asked for, too."""
    listed = names if label_images else _without_label_images(names)
    return [name for name in listed if PurePosixPath(name).suffix.lower() in SUFFIXES]


def _without_label_images(names: Collection[str]) -> list[str]:
    """The relative paths but those of label images: what lies in ``masks/`` or ``instances/`` beside ``images/``."""
    parents = {name: name.split("/")[:-1] for name in names}
    data_sets = {tuple(parts[:at]) for parts in parents.values() for at, part in enumerate(parts) if part == "images"}
    return [
        name
        for name, parts in parents.items()
        if not any(part in _LABEL_FOLDERS and tuple(parts[:at]) in data_sets for at, part in enumerate(parts))
    ]


def files_below(folder: Path, *, recursive: bool = True) -> Iterator[tuple[str, int | None]]:
    """The files of a folder without hidden names, in no order.

    Yields:
        The path below the folder, ``/`` between its parts, and ``st_mode``; None for a link that leads nowhere.

    Raises:
        SourceError: There is no such folder, or it or one in it cannot be listed.
        InputError: It holds more than :data:`MAX_ENTRIES` files and folders.
    """
    count = 0
    try:
        root = os.stat(folder)
        if not stat.S_ISDIR(root.st_mode):
            raise SourceError(f"{folder} is not a folder")
        # A stack and not recursion, which would end at a thousand folders in each other.
        waiting = [(os.fspath(folder), "", frozenset({(root.st_dev, root.st_ino)}))]
        while waiting:
            path, prefix, above = waiting.pop()
            with os.scandir(path) as entries:
                inside = list(entries)
            count += len(inside)
            if count > MAX_ENTRIES:
                raise InputError(f"{folder} holds more than {MAX_ENTRIES} files; name the folder that is meant")
            for entry in inside:
                if is_hidden(entry.name):
                    continue
                status = _status(entry)
                if status is None or not stat.S_ISDIR(status.st_mode):
                    yield prefix + entry.name, None if status is None else status.st_mode
                elif recursive and (place := (status.st_dev, status.st_ino)) not in above:
                    waiting.append((entry.path, f"{prefix}{entry.name}/", above | {place}))
    except (SourceError, InputError):  # are an OSError and a ValueError, too
        raise
    except (OSError, ValueError) as error:
        raise SourceError(f"the folder {folder} cannot be listed: {error}") from error


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The file status of a link's target; None if it does not exist or the links form a cycle."""
    try:
        return entry.stat()
    except OSError:
        return None


def _shown(names: Sequence[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:_SHOWN]) + more
