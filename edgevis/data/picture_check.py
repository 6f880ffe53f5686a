"""Finds pictures of a data set that cannot be read, before a training has spent hours on the others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgevis.data.files import Files, open_files
from edgevis.data.leakage import counted, listed
from runtime.common.limits import too_many_pixels
from runtime.errors import SourceError
from runtime.images.folders import images_of
from runtime.images.header import read_header

_READERS = 4
_SHOWN = 3
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
"""What the last bytes of a whole file of a format hold; others may follow."""


def require_readable(path: Path, progress: Callable[[int, int], None]) -> None:
    """Refuse data with pictures that are empty, cut short, too large, or no pictures. Nothing is decoded.

    Args:
        path: A folder or zip.
        progress: Told how many pictures are looked at, of how many.

    Raises:
        SourceError: There are such; the message names the first ones.
    """
    files = open_files(path, say_left_out=False)
    names = images_of(files.names, label_images=True)
    bad: list[str] = []
    pool = ThreadPoolExecutor(_READERS)
    try:
        for done, said in enumerate(pool.map(lambda name: _problem(files, name), names)):
            progress(done, len(names))
            if said:
                bad.append(said)
        progress(len(names), len(names))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt need not wait for the rest
    if bad:
        raise SourceError(
            f"{counted(bad, 'picture')} of {path} cannot be trained on: {listed(bad, most=_SHOWN)}; remove them, or "
            "put whole ones in their place"
        )


def _problem(files: Files, name: str) -> str:
    """What is wrong with a picture, in words; empty where nothing is."""
    try:
        data = files.read(name)
        header = read_header(data, name)
    except SourceError as error:
        return str(error)
    if too_many := too_many_pixels(header.width, header.height):
        return f"{name} {too_many}"
    if (end := _ENDS.get(header.format)) is not None and end not in data[len(data) // 2 :]:
        return f"{name} is cut short: the {header.format} has no end"
    return ""
