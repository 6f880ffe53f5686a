"""``answers.npz``: pictures, the input tensors that the build made of them, and the reference model's answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.bundle.manifest import ANSWERS
from runtime.bundle.spec import TensorSpec
from runtime.common.arrays import Array
from runtime.common.json_data import from_json, parse_json, to_json
from runtime.common.levels import differences, from_levels, levelled, sums
from runtime.errors import IntegrityError, SchemaError
from runtime.images.decode import Image
from runtime.images.masks import Mask

MAX_PICTURES = 16
_VERSION = 1
_HEADER = "header"
_EXPECTED = "expected/"


@dataclass(frozen=True, slots=True)
class AnswersHeader:
    """The description of the pictures and answers.

    Attributes:
        source: The origin of the pictures, without machine paths.
        deployment: The manifest's ``deployment`` that the answers were made with.
        shows: For each picture a number: those of one number show the same. Those of a number below 0 are neither
            enrolled nor predicted on: only their input tensors are compared.
        enrolled: For each picture whether it is enrolled; the others are predicted on.
        distances: Of each engine that ran at the build: how far its answers were from the reference model's, by the
            names of :func:`runtime.verification.answers.compare.distances`.
        one_step: How far the model's answers are off, by the same names, when half of the input's values are one step
            of 0..255 too low.
        version: The version of the file's format.
    """

    source: str
    deployment: Any
    shows: tuple[int, ...]
    enrolled: tuple[bool, ...]
    distances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    one_step: Mapping[str, float] = field(default_factory=dict)
    version: int = _VERSION

    @property
    def queries(self) -> list[int]:
        """Which pictures are predicted on."""
        pairs = zip(self.shows, self.enrolled, strict=True)
        return [index for index, (shows, enrolled) in enumerate(pairs) if shows >= 0 and not enrolled]


@dataclass(frozen=True, eq=False)
class Answers:
    """The content of ``answers.npz``.

    Attributes:
        header: The description of the other arrays.
        pictures: Each (H, W, 3) uint8 BGR, of its own size.
        masks: For each picture where its object is, (H, W) bool; None where no mask is needed.
        inputs: Of each picture the input tensor, (channels, height, width) float32, as the build made it.
        expected: What :func:`runtime.verification.answers.exercise.answers_of` returned for the reference model.
    """

    header: AnswersHeader
    pictures: tuple[Image, ...]
    masks: tuple[Mask | None, ...]
    inputs: tuple[npt.NDArray[np.float32], ...]
    expected: Mapping[str, Array]


def arrays_of(answers: Answers) -> dict[str, Array]:
    """The arrays that :func:`answers_from` reads."""
    header = json.dumps(to_json(answers.header), allow_nan=False).encode()
    arrays: dict[str, Array] = {_HEADER: np.frombuffer(header, np.uint8)}
    for index, (picture, mask) in enumerate(zip(answers.pictures, answers.masks, strict=True)):
        arrays[f"picture/{index}"] = differences(picture, axis=1)
        if mask is not None:
            arrays[f"mask/{index}"] = np.packbits(mask, axis=1)
    found = levelled(answers.inputs)
    if found is None:
        raise ValueError("a channel of the input has more values than a pixel")
    arrays["levels"], indices = found
    arrays |= {f"input/{index}": differences(array, axis=1) for index, array in enumerate(indices)}
    return arrays | {f"{_EXPECTED}{name}": array for name, array in answers.expected.items()}


def answers_from(arrays: Mapping[str, Array], image: TensorSpec) -> Answers:
    """Read what :func:`arrays_of` wrote.

    Args:
        arrays: The arrays of ``answers.npz``.
        image: The input that preprocessing makes.

    Raises:
        IntegrityError: An array is missing, or not of the dtype or shape that it must have.
    """
    try:
        header = from_json(AnswersHeader, parse_json(_array(arrays, _HEADER, np.uint8, 1).tobytes()), "header")
    except SchemaError as error:
        raise IntegrityError(f"{ANSWERS}: its header is damaged: {error}; build the bundle again") from error
    count = len(header.shows)
    if header.version != _VERSION:
        raise IntegrityError(f"{ANSWERS} has version {header.version}; this edgevis reads {_VERSION}: build it again")
    if not 1 <= count <= MAX_PICTURES or len(header.enrolled) != count or not header.queries:
        raise IntegrityError(f"{ANSWERS}: {count} pictures; allowed: 1 to {MAX_PICTURES}, some to be predicted on")
    levels = _array(arrays, "levels", np.float32, 2)
    pictures, masks, inputs = [], [], []
    for index in range(count):
        picture = sums(_array(arrays, f"picture/{index}", np.uint8, 3), axis=1)
        if picture.shape[2] != 3 or 0 in picture.shape:
            raise IntegrityError(f"{ANSWERS}: picture {index} is {picture.shape}; needed: (H, W, 3)")
        pictures.append(picture)
        masks.append(_mask(arrays, f"mask/{index}", picture.shape[:2]))
        planes = sums(_array(arrays, f"input/{index}", np.uint8, 3), axis=1)
        if planes.shape != image.shape[1:]:
            raise IntegrityError(f"{ANSWERS}: input {index} is {planes.shape}; needed: {image.shape[1:]}")
        try:
            inputs.append(from_levels(levels, planes))
        except ValueError as error:
            raise IntegrityError(f"{ANSWERS}: input {index}: {error}") from error
    expected = {
        name.removeprefix(_EXPECTED): _numbers(name, array)
        for name, array in arrays.items()
        if name.startswith(_EXPECTED)
    }
    return Answers(header, tuple(pictures), tuple(masks), tuple(inputs), expected)


def _array(arrays: Mapping[str, Array], name: str, dtype: npt.DTypeLike, rank: int) -> Array:
    array = arrays.get(name)
    if array is None or array.dtype != dtype or array.ndim != rank:
        actual = "missing" if array is None else f"{array.shape} {array.dtype}"
        raise IntegrityError(f"{ANSWERS}: {name} is {actual}; needed: {np.dtype(dtype)} of {rank} axes")
    return array


def _numbers(name: str, array: Array) -> Array:
    if array.dtype not in (np.float16, np.float32, np.float64, np.int16, np.int32):
        raise IntegrityError(f"{ANSWERS}: {name} is {array.dtype}; allowed: numbers")
    return array


def _mask(arrays: Mapping[str, Array], name: str, size: tuple[int, ...]) -> Mask | None:
    if name not in arrays:
        return None
    packed = _array(arrays, name, np.uint8, 2)
    if packed.shape != (size[0], (size[1] + 7) // 8):
        raise IntegrityError(f"{ANSWERS}: {name} is {packed.shape}, which is not the mask of a picture of {size}")
    return np.unpackbits(packed, axis=1, count=size[1]).astype(bool)
