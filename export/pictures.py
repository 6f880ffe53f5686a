"""The pictures that a bundle carries to compare answers: drawn here, or given by the user.

Drawn ones show nobody and need no licence. They are drawn in NumPy alone, with the edges, gradients and fine patterns
at which ways of resizing differ, in sizes that are enlarged, shrunk, and both; the first has the input's own size and
every value in every channel, so that colour order, scale, mean and std show to the last bit.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from calibration.data.masks import central_object
from calibration.data.samples import MAX_SIDE, photographs, shrunk_to_limit
from runtime.bundle.spec import Preprocess
from runtime.errors import InputError
from runtime.images.decode import Image, read_image
from runtime.images.folders import image_files
from runtime.images.masks import Mask
from runtime.verification.answers.file import MAX_PICTURES

DRAWN = "drawn by the build"
MIN_GIVEN = 2

_MOTIF_SHAPES = 14
_STRIPED = (2, 9)
_PERSONS = ("astronaut.png", "grace_hopper.jpg")
_MAX_PHOTOGRAPH = 512
_NOTHING = -1  # is shown by what is neither enrolled nor predicted on


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures in a fixed order.

    Attributes:
        images: Each (H, W, 3) uint8 BGR.
        masks: For each where its object is, (H, W) bool; None of what is not enrolled.
        shows, enrolled: See :class:`runtime.verification.answers.file.AnswersHeader`.
        source: Where they come from, without machine paths.
    """

    images: tuple[Image, ...]
    masks: tuple[Mask | None, ...]
    shows: tuple[int, ...]
    enrolled: tuple[bool, ...]
    source: str

    def all_queries(self) -> Pictures:
        """The same pictures for a model without enrolment: those to enrol are predicted on as well."""
        nothing = (None,) * len(self.images)
        return replace(self, masks=nothing, enrolled=(False,) * len(self.images))


# Motif, height and width as shares of the input's, and whether it is enrolled: two that are known, one that is not.
_VIEWS = (
    (0, 0.61, 0.87, True),
    (1, 1.37, 0.73, True),
    (0, 0.83, 1.63, False),
    (2, 1.13, 1.29, False),
    (0, 1.21, 1.07, True),
    (1, 0.52, 0.57, True),
    (1, 0.91, 1.17, False),
)
# Where an image takes a network seconds: one to enrol, one to predict on, one for preprocessing alone.
_FEW_VIEWS = ((0, 0.61, 0.87, True), (0, 1.37, 0.73, False), (_NOTHING, 1.13, 1.29, False))


def drawn_pictures(preprocess: Preprocess, *, few: bool) -> Pictures:
    """Pictures for an input of that size; the same in every build.

    Args:
        preprocess: Says how large the input is.
        few: Whether four do instead of eight, one of them enrolled and one predicted on.
    """
    height, width = preprocess.height, preprocess.width
    images, shows, enrolled = [_all_values(height, width)], [_NOTHING], [False]
    masks: list[Mask | None] = [None]
    for number, (motif, rows, columns, known) in enumerate(_FEW_VIEWS if few else _VIEWS):
        size = max(8, round(height * rows)), max(8, round(width * columns))
        image, mask = _drawn(abs(motif), number, size)
        images.append(image)
        masks.append(mask if known else None)
        shows.append(motif)
        enrolled.append(known)
    return Pictures(tuple(images), tuple(masks), tuple(shows), tuple(enrolled), DRAWN)


def with_photographs(pictures: Pictures, preprocess: Preprocess) -> Pictures:
    """The pictures and two photographs of a person, to be predicted on: a detector finds nothing in drawn ones.

    They are free of rights (NASA, US Navy) and come from the wheels of scikit-image and Matplotlib.

    Raises:
        MissingDependencyError: A package that carries them is not installed.
    """
    side = min(_MAX_PHOTOGRAPH, round(0.9 * max(preprocess.height, preprocess.width)))
    images = [shrunk_to_limit(image, side) for image in photographs(_PERSONS).values()]
    first = max(pictures.shows) + 1
    return Pictures(
        (*pictures.images, *images),
        (*pictures.masks, *[None] * len(images)),
        (*pictures.shows, *range(first, first + len(images))),
        (*pictures.enrolled, *[False] * len(images)),
        f"{pictures.source}, and two photographs that the wheels of scikit-image and Matplotlib carry",
    )


def given_pictures(folder: str | os.PathLike[str], preprocess: Preprocess) -> Pictures:
    """The image files of a folder, shrunk to :data:`calibration.data.samples.MAX_SIDE`, without their folders' names.

    Those in one sub-folder show the same: the first of each are enrolled, the later ones are predicted on.

    Raises:
        InputError: They are too few or too many.
        SourceError: There is no such folder, or one cannot be read.
    """
    paths = image_files(Path(folder))
    most = MAX_PICTURES - 1
    if not MIN_GIVEN <= len(paths) <= most:
        raise InputError(
            f"--golden-pictures: {folder} holds {len(paths)} image files; allowed: {MIN_GIVEN} to {most}, one "
            "sub-folder for each thing that they show"
        )
    names = [PurePosixPath(path).parent.as_posix() for path in paths]
    labels = list(dict.fromkeys(names))
    images = [shrunk_to_limit(read_image(path)) for path in paths]
    shows = [labels.index(name) for name in names]
    # Of each label the first half is enrolled; of what is shown once, only the very first, where nothing else is.
    known = [shows[:place].count(label) < shows.count(label) // 2 for place, label in enumerate(shows)]
    if not any(known):
        known[0] = True
    masks = [central_object(image) if enrolled else None for image, enrolled in zip(images, known, strict=True)]
    first = _all_values(preprocess.height, preprocess.width)
    return Pictures(
        (first, *images),
        (None, *masks),
        (_NOTHING, *shows),
        (False, *known),
        f"{len(paths)} pictures that were given to the build, at most {MAX_SIDE} pixels a side",
    )


def _all_values(height: int, width: int) -> Image:
    """A picture with all values 0..255 in every channel, ordered differently in each, as far as its pixels suffice."""
    index = np.arange(height * width)
    # Odd factors reach all values; the shifts keep grey out of it.
    channels = [(index * factor + shift + index // 256 * turn) % 256 for factor, shift, turn in _ORDERS]
    return np.stack(channels, axis=-1).reshape(height, width, 3).astype(np.uint8)


_ORDERS = ((1, 0, 0), (255, 90, 1), (1, 200, 3))


def _drawn(motif: int, view: int, size: tuple[int, int]) -> tuple[Image, Mask]:
    """One view of a motif, and the mask of its largest shape.

    The same shapes for one motif, a little moved and in another light for each view.
    """
    random = np.random.default_rng([motif, 20261128])
    light = np.random.default_rng([motif, view, 7])
    y, x = np.meshgrid(*((np.arange(length) + 0.5) / length for length in size), indexing="ij")
    y, x = y + light.uniform(-0.03, 0.03), x + light.uniform(-0.03, 0.03)
    top, bottom = random.uniform(30, 225, (2, 3))
    image = top + (bottom - top) * y[..., None] + random.uniform(-40, 40, 3) * x[..., None]
    largest = np.zeros(size, bool)
    for number in range(_MOTIF_SHAPES):
        where = _shape(random, x, y, large=number == 0)
        image[where] = random.uniform(0, 255, 3)
        if number in _STRIPED:  # stripes, finer than a pixel of some sizes
            waves = np.sin((x * random.uniform(-1, 1) + y) * random.uniform(40, 260))
            image[where] += random.uniform(20, 60) * waves[where][..., None]
        largest = where if number == 0 else largest & ~where
    image = image * light.uniform(0.85, 1.1) + light.uniform(-8, 8)
    if not largest.any():  # covered by the others, or smaller than a pixel
        largest = (np.abs(x - 0.5) < 0.25) & (np.abs(y - 0.5) < 0.25)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), largest


def _shape(random: np.random.Generator, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], *, large: bool) -> Mask:
    """The mask of a rotated ellipse or rectangle."""
    center = random.uniform(0.4, 0.6, 2) if large else random.uniform(0.05, 0.95, 2)
    radii = random.uniform(0.25, 0.35, 2) if large else random.uniform(0.04, 0.18, 2)
    angle, round_ = random.uniform(0, np.pi), random.random() < 0.5
    u = ((x - center[0]) * np.cos(angle) + (y - center[1]) * np.sin(angle)) / radii[0]
    v = ((y - center[1]) * np.cos(angle) - (x - center[0]) * np.sin(angle)) / radii[1]
    return np.asarray(u * u + v * v < 1 if round_ else np.maximum(np.abs(u), np.abs(v)) < 1)
