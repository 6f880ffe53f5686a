"""The pictures to label: files, folders, zips and videos, without near-duplicates of a video's frames."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from edgevis.data.files import Files, open_files
from runtime.errors import InputError, SourceError
from runtime.images.decode import SUFFIXES, Image, decode_image, read_image_file
from runtime.images.folders import images_of
from runtime.streams.reader import StreamReader

_TABLES = ("index.csv", "labels.csv")
_FRAMES = re.compile(r"(\d+)-(\d+)")
_THUMBNAIL = 32
_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True, eq=False)
class UnlabelledPicture:
    """A picture of a source.

    Attributes:
        name: Its path below the folder ``images`` of the labels, unique over all sources.
        source: The file name of its source.
        image: (H, W, 3) uint8 BGR, upright.
        content: The bytes to store: those of its file, or a frame's JPEG.
    """

    name: str
    source: str
    image: Image
    content: bytes


@dataclass(frozen=True, slots=True)
class PictureSource:
    """Where pictures come from.

    Attributes:
        path: A picture, a folder, a zip, or a video.
        choice: Of a folder or a zip, column to value: the rows of its ``index.csv`` or ``labels.csv`` that count.
        frames: Of a video, the first and the last frame that count, from 0; None for all.
    """

    path: Path
    choice: Mapping[str, str]
    frames: tuple[int, int] | None

    @classmethod
    def parse(cls, text: str) -> PictureSource:
        """The source of ``PATH``, ``ZIP:column=value,column=value`` or ``VIDEO:FIRST-LAST``.

        Raises:
            InputError: What follows the colon is neither.
        """
        head, colon, tail = text.rpartition(":")
        if not colon or Path(text).exists():
            return cls(Path(text), {}, None)
        frames = _FRAMES.fullmatch(tail)
        if frames is not None:
            first, last = int(frames[1]), int(frames[2])
            if first > last:
                raise InputError(f"{text!r}: the first frame is behind the last")
            return cls(Path(head), {}, (first, last))
        pairs = [item.partition("=") for item in tail.split(",")]
        if any(not column or not equals for column, equals, _ in pairs):
            raise InputError(f"{text!r} is no source; allowed: PATH, ZIP:column=value[,column=value], VIDEO:FIRST-LAST")
        return cls(Path(head), {column.strip().casefold(): value.strip() for column, _, value in pairs}, None)

    def __str__(self) -> str:
        if self.frames is not None:
            return f"{self.path.name}:{self.frames[0]}-{self.frames[1]}"
        chosen = ",".join(f"{column}={value}" for column, value in self.choice.items())
        return f"{self.path.name}:{chosen}" if chosen else self.path.name


def pictures_of(
    source: PictureSource, *, every: int = 1, most: int | None = None, change: float = 12.0, known: int = 0
) -> Iterator[UnlabelledPicture | None]:
    """The pictures of a source, in order.

    Args:
        source: Where they come from.
        every: Of a video, each how manieth frame is looked at.
        most: Of a folder or a zip, at most that many pictures, evenly spaced; of a video so many frames.
        change: A frame of a video is left out whose 32 x 32 thumbnail differs from that of the last one taken by no
            more than this in any place, of 255.
        known: So many of the first pictures are done already: each comes as None and is not decoded, if it need not be.

    Raises:
        SourceError: It cannot be read.
        InputError: A selection does not fit the source, or leaves nothing.
    """
    if source.path.is_dir() or (source.path.is_file() and source.path.suffix.lower() == ".zip"):
        if source.frames is not None:
            raise InputError(f"{source}: frames are chosen of a video; of a folder or a zip give column=value")
        return _from_files(source, most, known)
    if source.choice:
        raise InputError(f"{source}: only pictures of a folder or a zip are chosen by column=value")
    if source.path.suffix.lower() in SUFFIXES:
        return _from_file(source.path, known)
    return _from_video(source, every, most, change, known)


def _from_file(path: Path, known: int) -> Iterator[UnlabelledPicture | None]:
    if known:
        yield None
        return
    content = read_image_file(path)
    digest = hashlib.sha256(content).hexdigest()[:8]
    yield UnlabelledPicture(f"{path.stem}-{digest}{path.suffix}", path.name, decode_image(content, str(path)), content)


def _from_files(source: PictureSource, most: int | None, known: int) -> Iterator[UnlabelledPicture | None]:
    files = open_files(source.path)
    names = _chosen(files, source.choice) if source.choice else images_of(files.names)
    if not names:
        raise InputError(f"{source} holds no pictures")
    if most is not None and len(names) > most:
        names = [names[number] for number in np.linspace(0, len(names) - 1, most).round().astype(int)]
    for number, name in enumerate(names):
        if number < known:
            yield None
            continue
        content = files.read(name)
        image = decode_image(content, files.where(name))
        yield UnlabelledPicture(f"{source.path.stem}/{name}", source.path.name, image, content)


def _chosen(files: Files, choice: Mapping[str, str]) -> list[str]:
    """The pictures whose row of the table has the chosen values."""
    table = next((name for name in _TABLES if name in files.names), None)
    if table is None:
        raise InputError(f"{files.path} has no {' or '.join(_TABLES)} to choose pictures by")
    rows = files.table(table, tuple(choice))
    rows = [row for row in rows if all(row[column] == value for column, value in choice.items())]
    if rows and "path" in rows[0]:
        return sorted({files.listed(row["path"], table) for row in rows})
    if rows and "stem" not in rows[0]:
        raise SourceError(f"{files.path}: {table} names no pictures; it needs the column path or stem")
    stems = {row["stem"] for row in rows}
    return [name for name in images_of(files.below("images")) if PurePosixPath(name).stem in stems]


def _from_video(
    source: PictureSource, every: int, most: int | None, change: float, known: int
) -> Iterator[UnlabelledPicture | None]:
    first, last = source.frames or (0, None)
    former: NDArray[np.int16] | None = None
    taken = index = 0
    with StreamReader(source.path, drop="none") as reader:
        for (frame,) in reader:
            index = frame.index
            if (last is not None and index > last) or (most is not None and taken == most):
                break
            if index < first or (index - first) % every:
                continue
            thumbnail = cv2.resize(frame.image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
            values = thumbnail.astype(np.int16)
            if former is not None and np.abs(values - former).max() <= change:
                continue
            former, taken = values, taken + 1
            if taken <= known:
                yield None
                continue
            _, encoded = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            name = f"{source.path.stem}/{index:06d}.jpg"
            yield UnlabelledPicture(name, source.path.name, frame.image, encoded.tobytes())
    if not taken:
        raise InputError(f"{source} holds no frame: the video has {index + 1}")
