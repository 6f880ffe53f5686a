"""The quality checks of images to enrol: size, sharpness, exposure, and their relation to enrolled images.

Each image gets the reasons that speak against it, with what was measured and what would be allowed. Only what cannot
work is refused; the rest is enrolled and reported. What is measured on pixels costs one area resize and a few passes
over a grid of some thousand pixels; what is measured on embeddings costs one search of the gallery.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from runtime.bundle.spec import Preprocess
from runtime.common.arrays import Array
from runtime.common.json_data import to_json
from runtime.enrolment.quality_bounds import Bounds
from runtime.errors import EnrolmentRefusedError
from runtime.images.decode import Image, ImageLike, several
from runtime.images.masks import Mask

Reason = Literal[
    "unusable",
    "too_small",
    "blurred",
    "dark",
    "bright",
    "low_contrast",
    "duplicate",
    "closer_to_other_label",
    "outlier",
]
"""Why an image is refused or warned of.

``unusable``: a side below 4 pixels, the same colour everywhere, or no embedding that has a direction; refused.
``too_small``: the model's input would be filled by enlarging the image, or the object covers too little of it.
``blurred``: out of focus, moved, or enlarged before it came here: there is no detail where the model looks for it.
``dark``, ``bright``, ``low_contrast``: exposure.
``duplicate``: (nearly) the same picture as another one of the call or of the enrolment: it adds nothing.
``closer_to_other_label``: it scores higher against another label than against the label's other images.
``outlier``: unlike the label's other images.
"""

Severity = Literal["refuse", "warn"]

_MIN_SIDE = 4  # pixels; of less, no shape is left
_MIN_GRID = 16  # pixels a side of the grid that sharpness is measured on
_FLAT = 2.0  # grey levels between the darkest and the brightest cell of an image that shows nothing
_MIN_STRUCTURE = 1.5  # grey levels, RMS: a direction with less coarse structure than that cannot show blur
_SAMPLED = 16  # rows and columns that are searched for repeated neighbours
_SAMPLES = 8  # pixels a side that are averaged for a cell, at least; all pixels of a photograph would be slow
_THUMBNAIL = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason against enrolling an image.

    Attributes:
        reason: One of :data:`Reason`.
        severity: ``"refuse"``: it cannot work and is not enrolled; ``"warn"``: it is enrolled all the same.
        value: The measured value.
        bound: The least or the largest allowed value.
        detail: The finding in words.
    """

    reason: Reason
    severity: Severity
    value: float
    bound: float
    detail: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """The findings for one image of an enrolment.

    Attributes:
        image: The path that was given, or ``image 3 of 8``, counted from 1.
        enrolled: Whether it was enrolled.
        findings: The findings against the image.
    """

    image: str
    enrolled: bool
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class EnrolmentReport:
    """The result of ``Predictor.enroll``.

    Attributes:
        label: The label that was enrolled.
        enrolled: The number of enrolled images.
        judgements: One for each image, in order.
    """

    label: str
    enrolled: int
    judgements: tuple[Judgement, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each finding, of accepted and refused images; empty when there are none."""
        return tuple(
            f"{item.image}: {finding.reason}{' (refused)' if finding.severity == 'refuse' else ''}: {finding.detail}"
            for item in self.judgements
            for finding in item.findings
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**to_json(self), "warnings": list(self.warnings)}

    def __str__(self) -> str:
        total = len(self.judgements)
        counts = f"{self.enrolled} of {total} image{'s' if total != 1 else ''} enrolled as {self.label!r}"
        if not self.warnings:
            return f"{counts}; nothing to remark"
        return "\n".join([f"{counts}; remarks:", *(f"  {line}" for line in self.warnings)])


def report_on(
    label: str, names: Sequence[str], findings: Sequence[Sequence[Finding]], *, strict: bool
) -> EnrolmentReport:
    """The report of an enrolment, when at least one image may be enrolled.

    Args:
        label: The label.
        names: N names of the images, for people.
        findings: The findings for each image.
        strict: Refuse all when there is any finding.

    Raises:
        EnrolmentRefusedError: No image is left, or there is a finding and ``strict``; its ``report`` says all.
    """
    judged = tuple(
        Judgement(name, not any(finding.severity == "refuse" for finding in image_findings), tuple(image_findings))
        for name, image_findings in zip(names, findings, strict=True)
    )
    report = EnrolmentReport(label, sum(item.enrolled for item in judged), judged)
    if report.enrolled and not (strict and report.warnings):
        return report
    none = EnrolmentReport(label, 0, tuple(replace(item, enrolled=False) for item in judged))
    cause = "not one image can be used" if not report.enrolled else "strict refuses images with a finding"
    raise EnrolmentRefusedError(
        f"nothing was enrolled as {label!r}, as {cause}: {'; '.join(none.warnings)}", report=none
    )


def image_names(images: ImageLike | Sequence[ImageLike]) -> list[str]:
    """The names of the images given to ``enroll``: their paths, or their places in the list."""
    items = several(images)
    items = [images] if items is None else items
    return [
        os.fsdecode(item) if isinstance(item, (str, os.PathLike)) else f"image {place} of {len(items)}"
        for place, item in enumerate(items, 1)
    ]


def inspect(image: Image, spec: Preprocess, bounds: Bounds, mask: Mask | None = None) -> list[Finding]:
    """The findings for an image from its pixels alone.

    Args:
        image: (H, W, 3) uint8 BGR.
        spec: The model's preprocessing.
        bounds: The bounds of the checks.
        mask: (H, W) bool, where the object is; None for all of the image.
    """
    if min(image.shape[:2]) < _MIN_SIDE:
        height, width = image.shape[:2]
        detail = f"{height} x {width} pixels (height x width); at least {_MIN_SIDE} a side are needed"
        return [Finding("unusable", "refuse", float(min(height, width)), float(_MIN_SIDE), detail)]
    seen, inside = (_seen(image, spec), None) if mask is None else object_crop(image, mask)
    scales = _scales(image, spec)
    luma = _brightness(seen, *_grid_size(seen, scales, bounds))
    if mask is None and (span := _span(luma, seen)) <= _FLAT:
        return [Finding("unusable", "refuse", span, _FLAT, "the same colour everywhere: it shows nothing")]
    small = _small_image(seen, scales, bounds) if inside is None else _small_object(inside, scales, spec, bounds)
    image_findings = [small, _exposure(luma, inside, bounds)]
    if small is None:  # a small image has no detail either: one reason is enough
        image_findings.append(_blur(luma, bounds))
    return [finding for finding in image_findings if finding is not None]


def without_direction(embeddings: Array) -> npt.NDArray[np.bool_]:
    """(N,) bool: which of (N, D) embeddings are not of length one, because they were zero or not finite."""
    # Written so that NaN, which compares false with everything, has no direction.
    return np.asarray(~(np.abs(np.einsum("nd,nd->n", embeddings, embeddings) - 1.0) <= 1e-3))


def no_direction() -> Finding:
    """The finding for an image whose embedding is not of length one."""
    detail = "its embedding is not a row of length one (all zero or not finite?): the model cannot use such an image"
    return Finding("unusable", "refuse", 0.0, 1.0, detail)


def object_crop(image: Image, mask: Mask) -> tuple[Image, Mask]:
    """The image and the mask, cropped around the marked object."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return image[box], mask[box]


def thumbnails(images: Sequence[Image]) -> Array:
    """(N, 256) float32 unit rows whose products are correlations of coarse brightness; a flat image's row is 0."""
    rows = np.empty((len(images), _THUMBNAIL * _THUMBNAIL), np.float32)
    for row, image in zip(rows, images, strict=True):
        row[:] = _brightness(image, _THUMBNAIL, _THUMBNAIL).ravel()
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, _FLAT * _THUMBNAIL))


def repeated_pictures(thumbs: Array, names: Sequence[str], bounds: Bounds) -> list[list[Finding]]:
    """For each image of a call, whether it repeats an earlier one, from the rows of :func:`thumbnails`."""
    image_findings: list[list[Finding]] = [[] for _ in names]
    alike = np.tril(thumbs @ thumbs.T, -1)
    for place in range(1, len(names)):
        other = int(alike[place, :place].argmax())
        value = float(alike[place, other])
        if value >= bounds.max_picture_correlation:
            detail = f"the same picture as {names[other]} (correlation {value:.4f})"
            image_findings[place].append(Finding("duplicate", "warn", value, bounds.max_picture_correlation, detail))
    return image_findings


def _seen(image: Image, spec: Preprocess) -> Image:
    """The part of the image that the model sees."""
    if spec.fit != "center-crop":
        return image
    rows, columns = image.shape[:2]
    ratio = max(spec.width / columns, spec.height / rows)
    height = min(rows, max(1, round(spec.height / ratio)))
    width = min(columns, max(1, round(spec.width / ratio)))
    top, left = (rows - height) // 2, (columns - width) // 2
    return image[top : top + height, left : left + width]


def _scales(image: Image, spec: Preprocess) -> tuple[float, float]:
    """Pixels of the model's input for each pixel of the image, down and across."""
    down, across = spec.height / image.shape[0], spec.width / image.shape[1]
    if spec.fit == "stretch":
        return down, across
    ratio = max(down, across) if spec.fit == "center-crop" else min(down, across)
    return ratio, ratio


def _grid_size(seen: Image, scales: tuple[float, float], bounds: Bounds) -> tuple[int, int]:
    """Even height and width of the grid on which ``seen`` is judged: its size in the model's input, divided."""
    height, width = (
        max(_MIN_GRID, round(side * scale / bounds.blur_divisor / 2) * 2)
        for side, scale in zip(seen.shape[:2], scales, strict=True)
    )
    return height, width


def _brightness(image: Image, height: int, width: int) -> npt.NDArray[np.float32]:
    """(height, width) float32, 0..255: the mean luma of each cell; of a large image, from at least 64 samples per cell.

    Grey first: INTER_AREA takes three times as long for three channels.
    """
    grey = cv2.cvtColor(_sampled(image, height, width), cv2.COLOR_BGR2GRAY)
    return np.asarray(cv2.resize(grey.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA), np.float32)


def _sampled(image: Image, height: int, width: int) -> Image:
    """The image subsampled by rows and columns, with enough samples left for each cell of the grid."""
    step = min(image.shape[0] // (_SAMPLES * height), image.shape[1] // (_SAMPLES * width))
    return np.ascontiguousarray(image[::step, ::step]) if step > 1 else np.ascontiguousarray(image)


def _span(luma: npt.NDArray[np.float32], seen: Image) -> float:
    """Grey levels between the darkest and the brightest cell, in the channel with the largest range."""
    span = float(np.ptp(luma))
    if span > _FLAT:
        return span
    # Colours may differ where brightness does not.
    size = luma.shape[1], luma.shape[0]
    colors = cv2.resize(_sampled(seen, *luma.shape), size, interpolation=cv2.INTER_AREA)
    return max(float(np.ptp(channel)) for channel in cv2.split(colors))


def _small_image(seen: Image, scales: tuple[float, float], bounds: Bounds) -> Finding | None:
    """Whether the model's input would be filled by enlarging the image."""
    rows, columns = _distinct(seen)
    # What a repeated row or column enlarged before counts as well.
    down, across = scales[0] * seen.shape[0] / rows, scales[1] * seen.shape[1] / columns
    value = 1 / max(down, across)
    if value >= bounds.min_scale:
        return None
    enlarged = "" if (rows, columns) == seen.shape[:2] else ", enlarged by repeating pixels"
    detail = (
        f"{rows} x {columns} pixels (height x width){enlarged}: {value:.2f} of the resolution that the model takes; "
        f"at least {bounds.min_scale} is advised"
    )
    return Finding("too_small", "warn", value, bounds.min_scale, detail)


def _small_object(inside: Mask, scales: tuple[float, float], spec: Preprocess, bounds: Bounds) -> Finding | None:
    """Whether the object covers too little of the model's input, or has too few pixels of its own."""
    pixels = int(np.count_nonzero(inside))
    value = float(np.sqrt(pixels * min(1.0, scales[0] * scales[1]) / (spec.height * spec.width)))
    if value >= bounds.min_scale:
        return None
    detail = (
        f"the object has {pixels} pixels: {value:.3f} of the side of the model's input; at least {bounds.min_scale} "
        "is advised: crop the image around the object"
    )
    return Finding("too_small", "warn", value, bounds.min_scale, detail)


def _distinct(image: Image) -> tuple[int, int]:
    """The numbers of rows and columns that do not repeat their neighbour, as after nearest-neighbour enlargement."""
    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image[:: -(-height // _SAMPLED)])
    columns = np.ascontiguousarray(image[:, :: -(-width // _SAMPLED)].swapaxes(0, 1))
    return _changes(columns), _changes(rows)


def _changes(lines: Image) -> int:
    """The number of columns of (R, W, 3) that differ from the one before in any row, the first column included."""
    steps = cv2.absdiff(lines[:, 1:].reshape(len(lines), -1), lines[:, :-1].reshape(len(lines), -1))
    largest = cv2.reduce(steps, 0, cv2.REDUCE_MAX).reshape(-1, 3)
    return int(np.count_nonzero(largest.any(axis=1))) + 1


def _exposure(luma: npt.NDArray[np.float32], inside: Mask | None, bounds: Bounds) -> Finding | None:
    """Whether the image is too dark, too bright or uniformly grey: the 5th and 95th percentiles of its brightness."""
    pixels = luma.ravel()
    if inside is not None:
        size = luma.shape[1], luma.shape[0]
        marked = luma[cv2.resize(inside.astype(np.uint8), size, interpolation=cv2.INTER_AREA) > 0]
        pixels = marked if marked.size else pixels
    places = (len(pixels) - 1) // 20, len(pixels) - 1 - (len(pixels) - 1) // 20
    ordered = np.partition(pixels, places)
    low, high = (float(ordered[place]) for place in places)
    if high < bounds.min_bright_level:
        detail = (
            f"95 % of it is below {high:.0f} of 255; the brightest parts should reach {bounds.min_bright_level:.0f}"
        )
        return Finding("dark", "warn", high, bounds.min_bright_level, detail)
    if low > bounds.max_dark_level:
        detail = f"95 % of it is above {low:.0f} of 255; the darkest parts should be below {bounds.max_dark_level}"
        return Finding("bright", "warn", low, bounds.max_dark_level, detail)
    if inside is None and high - low < bounds.min_contrast:
        detail = (
            f"its brightness spans {high - low:.0f} of 255 grey levels; at least {bounds.min_contrast:.0f} are advised"
        )
        return Finding("low_contrast", "warn", high - low, bounds.min_contrast, detail)
    return None


def _blur(luma: npt.NDArray[np.float32], bounds: Bounds) -> Finding | None:
    """Whether detail is missing at the grid's resolution.

    Of each of four directions, the RMS of differences between neighbours on the grid over that on a grid half as fine:
    a ratio, so contrast cancels. Sharp edges keep their height (near 1), a smooth ramp halves (0.5). The least counts,
    because motion blurs one direction only.
    """
    half = cv2.resize(luma, (luma.shape[1] // 2, luma.shape[0] // 2), interpolation=cv2.INTER_AREA)
    ratios = [
        fine / coarse
        for fine, coarse in zip(_differences(luma), _differences(half), strict=True)
        if coarse >= _MIN_STRUCTURE
    ]
    if not ratios or min(ratios) >= bounds.min_sharpness:
        return None
    value = min(ratios)
    detail = (
        f"sharpness {value:.2f}, where 0.5 is no detail at all; at least {bounds.min_sharpness} is advised: out of "
        "focus, moved, or enlarged from a smaller image"
    )
    return Finding("blurred", "warn", value, bounds.min_sharpness, detail)


def _differences(grid: Array) -> tuple[float, ...]:
    """The RMS difference between neighbouring cells: horizontal, vertical and along both diagonals."""
    pairs = (
        (grid[:, 1:], grid[:, :-1]),
        (grid[1:], grid[:-1]),
        (grid[1:, 1:], grid[:-1, :-1]),
        (grid[1:, :-1], grid[:-1, 1:]),
    )
    return tuple(cv2.norm(one, other) / math.sqrt(one.size) for one, other in pairs)
