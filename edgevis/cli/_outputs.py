"""Output paths of drawn pictures: checked before the work begins, and never those of existing files."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgevis import OutputError
from edgevis.cli._streams import check_folder_name
from runtime.images.picture_files import may_be_drawn, write_drawing


class Outputs:
    """Output files in one folder, one new file for each input.

    An input keeps its place below the folder that holds all of them, so that those of one name stay apart. A name that
    is taken, by an input, by any other file that edgevis did not draw, or by the drawing of another input, gets a
    number. What an earlier run drew is drawn anew.

    Args:
        folder: Where to write; it is made when the work begins.
        suffix: ``".jpg"`` or ``".png"``.
        inputs: The files that are read.

    Raises:
        OutputError: The folder cannot be made or written to.
    """

    def __init__(self, folder: str, suffix: str, inputs: Sequence[Path]) -> None:
        self.folder = Path(folder)
        self._places: dict[Path, Path] = {}
        self._checked: set[Path] = set()
        check_folder_name(self.folder)
        try:
            self._plan(suffix, inputs)
        except OutputError:  # is an OSError, too
            raise
        except OSError as error:
            raise OutputError(f"no pictures can be written into {folder}: {error}") from error

    def prepare(self) -> None:
        """Create the folder and check that files can be written to it.

        Raises:
            OutputError: It cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"\0")
        except OSError as error:
            raise OutputError(f"no pictures can be written into {self.folder}: {error}") from error

    def write(self, source: Path, picture: npt.NDArray[np.uint8]) -> str:
        """Write the picture of one input; returns the picture's path.

        Raises:
            OutputError: It cannot be written.
        """
        place = self._places[source]
        write_drawing(place, picture)
        return str(place)

    def _plan(self, suffix: str, inputs: Sequence[Path]) -> None:
        taken: set[str] = set()
        read = {(status.st_dev, status.st_ino) for status in _statuses(inputs)}
        for source, place in places(inputs).items():
            whole = self.folder / place
            # A JPEG keeps its name; what becomes one gets a second suffix, so that a.png and a.jpg stay apart.
            stem = whole.name[: -len(suffix)] if suffix == ".jpg" == whole.suffix.lower() else whole.name
            end = whole.suffix if stem != whole.name else suffix
            self._check_folder(whole.parent)
            number = 1
            while True:
                path = whole.with_name(f"{stem}{'' if number == 1 else f'-{number}'}{end}")
                if _key(path) not in taken and may_be_drawn(path) and not _is_one_of(path, read):
                    break
                number += 1
            taken.add(_key(path))
            self._places[source] = path

    def _check_folder(self, folder: Path) -> None:
        """Check that the folder can be created, or is writable if it exists."""
        if folder in self._checked:
            return
        self._checked.add(folder)
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise OutputError(f"no pictures can be written into {folder}: {there} is not a folder; name another one")
        if not os.access(there, os.W_OK | os.X_OK):
            raise OutputError(f"no pictures can be written into {folder}: you may not write to {there}")


def places(inputs: Sequence[Path]) -> dict[Path, Path]:
    """Each input's path relative to the common parent folder; links are not resolved."""
    whole = {path: Path(os.path.abspath(path)) for path in inputs}
    common = os.path.commonpath([path.parent for path in whole.values()])
    return {path: place.relative_to(common) for path, place in whole.items()}


def _key(path: Path) -> str:
    """A key that is equal for paths which a file system may treat as one: some ignore case or Unicode normalisation."""
    return unicodedata.normalize("NFC", os.path.abspath(path)).casefold()


def _is_one_of(path: Path, read: set[tuple[int, int]]) -> bool:
    return any((status.st_dev, status.st_ino) in read for status in _statuses([path]))


def _statuses(paths: Sequence[Path]) -> Iterator[os.stat_result]:
    for path in paths:
        try:
            yield os.stat(path)
        except (OSError, ValueError):  # reading it says why
            continue
