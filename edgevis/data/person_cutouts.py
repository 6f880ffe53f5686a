"""Pictures of persons with their masks, cut from photos and videos whose licences permit training.

Sources: Clothing Co-Parsing (Yang, Luo, Lin, CVPR 2014; Apache-2.0) as a zip with ``images/``, ``masks/`` and
``index.csv``; and any video of a static camera, such as ``one-by-one-person-detection.mp4`` of intel-iot-devkit's
sample-videos (CC BY 4.0).
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgevis.data.splits import same_split
from runtime.common.files import ZIP_ERRORS
from runtime.errors import EdgevisError, InputError, SourceError
from runtime.images.decode import decode_picture
from runtime.images.masks import decode_mask, laid_beside
from runtime.streams.reader import frames as read_frames
from runtime.streams.video_file import frames_per_second

BACKGROUND = 0
BODY = 1
"""Value of skin and hair in :attr:`PersonCutout.parts`; each larger value is a garment or a half of the clothing."""

VIDEO_SUFFIXES = frozenset({".avi", ".mkv", ".mov", ".mp4"})
"""The files of a folder that :func:`read_person_sources` takes for videos."""

_CCP_BODY_NAMES = frozenset({"skin", "hair"})
_MARGIN = 0.6


@dataclass(frozen=True, slots=True, eq=False)
class PersonCutout:
    """One person in their surroundings.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        parts: (H, W) uint8: :data:`BACKGROUND`, :data:`BODY`, or the number of a part.
        box: x0, y0, x1, y1 of the person in pixels of ``image``; the ends are exclusive.
    """

    image: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class PersonSources:
    """Persons to learn from, and persons held out.

    Attributes:
        photos: Of the photographs' split ``train``.
        video: Of the videos.
        held_out: Of the photographs' split ``val``.
    """

    photos: tuple[PersonCutout, ...]
    video: tuple[PersonCutout, ...]
    held_out: tuple[PersonCutout, ...]


def read_person_sources(path: Path) -> PersonSources:
    """The persons of Clothing Co-Parsing's zip, or of a folder with this zip and any number of videos.

    Raises:
        SourceError: It is neither, or a file cannot be read.
    """
    if not path.is_dir():
        return PersonSources(
            tuple(persons_from_ccp(path, split="train")), (), tuple(persons_from_ccp(path, split="val"))
        )
    files = sorted(path.iterdir())
    zips = [file for file in files if file.suffix == ".zip"]
    if len(zips) != 1:
        raise SourceError(f"{path} holds {len(zips)} zips; allowed: Clothing Co-Parsing's alone, and videos beside it")
    video = [person for file in files if file.suffix in VIDEO_SUFFIXES for person in persons_from_video(file)]
    photos = read_person_sources(zips[0])
    return PersonSources(photos.photos, tuple(video), photos.held_out)


def persons_from_ccp(path: str | PathLike[str], *, split: str) -> list[PersonCutout]:
    """The persons of one split (``train`` or ``val``) of the Clothing Co-Parsing zip, in the order of its index."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = _ccp_names(archive.read("classes.json"))
            rows = csv.DictReader(io.TextIOWrapper(archive.open("index.csv"), "utf-8"))
            stems = [row["stem"] for row in rows if same_split(row["split"], split)]
            persons = [_person_from_ccp(archive, stem, names) for stem in stems]
    except EdgevisError:
        raise
    except (KeyError, TypeError, csv.Error, *ZIP_ERRORS) as error:
        raise SourceError(f"{path} is not the Clothing Co-Parsing zip: {error}") from error
    if not persons:
        raise SourceError(f"{path} has no photo of split {split!r}; its splits are 'train' and 'val'")
    return [person for person in persons if person is not None]


def persons_from_video(
    path: str | PathLike[str], *, every: int = 8, empty_s: float = 3.0, min_height: int = 120, threshold: int = 32
) -> list[PersonCutout]:
    """Persons before a static camera, at most one (the largest that was not there at the start) per frame.

    The background is the median of the empty scene that the video starts with (a median over all of it would show a
    person where persons stand most of the time); a pixel belongs to the person if a channel differs from it by more
    than ``threshold`` grey levels. Parts are the upper and the lower half of the person.

    Args:
        every: Looks at each ``every``-th frame.
        empty_s: For how many seconds the scene is empty.
        min_height: Boxes lower than this many pixels are dropped.
    """
    if not Path(path).is_file():
        raise SourceError(f"no video at {path}")
    empty = max(1, round(empty_s * (frames_per_second(Path(path)) or 25.0) / every))
    frames: list[NDArray[np.uint8]] = list(islice(read_frames(Path(path)), 0, None, every))
    background = np.median(np.stack(frames[:empty]), axis=0).astype(np.uint8)
    persons = [_person_from_frame(frame, background, min_height, threshold) for frame in frames[empty:]]
    return [person for person in persons if person is not None]


def _ccp_names(content: bytes) -> list[str]:
    return [str(name) for name in json.loads(content)["names"]]


def _person_from_ccp(archive: zipfile.ZipFile, stem: str, names: list[str]) -> PersonCutout | None:
    image, orientation = decode_picture(archive.read(f"images/{stem}.jpg"), f"photo {stem}")
    stored = decode_mask(archive.read(f"masks/{stem}.png"), f"the mask of photo {stem}")
    try:
        mask = laid_beside(stored, image, orientation, "the mask")
    except InputError as error:
        raise SourceError(f"photo {stem} and its mask do not fit together: {error}") from error
    # 255 masks a few garments in the source; here it counts as one more garment.
    table = np.array([i + 1 if i < 254 else i for i in range(256)], np.uint8)
    table[0] = BACKGROUND
    for i, name in enumerate(names):
        if name in _CCP_BODY_NAMES:
            table[i] = BODY
    return _person(image, table[mask])


def _person_from_frame(
    frame: NDArray[np.uint8], background: NDArray[np.uint8], min_height: int, threshold: int
) -> PersonCutout | None:
    difference = cv2.absdiff(cv2.blur(frame, (3, 3)), cv2.blur(background, (3, 3))).max(axis=2)
    moving = (difference > threshold).astype(np.uint8)
    moving = np.asarray(cv2.morphologyEx(moving, cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8)), np.uint8)
    moving = np.asarray(cv2.morphologyEx(moving, cv2.MORPH_OPEN, np.ones((7, 7), np.uint8)), np.uint8)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(moving)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    top, height = int(statistics[largest, cv2.CC_STAT_TOP]), int(statistics[largest, cv2.CC_STAT_HEIGHT])
    width = int(statistics[largest, cv2.CC_STAT_WIDTH])
    if height < min_height or width < height // 6:
        return None
    parts = np.where(labels == largest, np.uint8(BODY + 1), np.uint8(BACKGROUND))
    lower = parts[top + int(0.55 * height) :]
    lower[lower != BACKGROUND] = BODY + 2
    return _person(frame, parts)


def _person(image: NDArray[np.uint8], parts: NDArray[np.uint8]) -> PersonCutout | None:
    """The person with a margin of surroundings, or None if there is hardly a pixel of them."""
    rows, columns = np.flatnonzero(parts.any(axis=1)), np.flatnonzero(parts.any(axis=0))
    if len(rows) < 32 or len(columns) < 12:
        return None
    x0, x1, y0, y1 = int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1
    margin = round(_MARGIN * (x1 - x0))
    left, top = max(0, x0 - margin), max(0, y0 - margin)
    right, bottom = min(image.shape[1], x1 + margin), min(image.shape[0], y1 + margin)
    return PersonCutout(
        np.ascontiguousarray(image[top:bottom, left:right]),
        np.ascontiguousarray(parts[top:bottom, left:right]),
        (x0 - left, y0 - top, x1 - left, y1 - top),
    )
