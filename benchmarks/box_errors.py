r"""Where arms of ``benchmarks.accuracy boxes`` go wrong: by object size, angle of the outline, distance from the box.

    python -m benchmarks.box_errors --data hippocampus_dev.zip --runs runs/boxes --seeds 0 1 2

The trained arms segment the images that evaluate. Missed and false pixels are counted for every hundred of the true
object's pixels, so that the bins of one question add up to all errors:

- *size*: thirds of the images by the object's area;
- *angle*: between the nearest outline and the nearest side's direction, from 0 (along a side) to 45 degrees;
- *distance* from the box's nearest side, in shares of half the box's shorter side; and outside of the box.

± is half of the 95 % interval over trainings (Student's t), with one seed over the volumes that evaluate (jackknife).
The difference is to the first arm with the same seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import COMPARISONS
from benchmarks.figure import Figure, figure_text
from benchmarks.report import report
from benchmarks.trained_weights import TrainedSegmenter
from edgevis import InputError
from edgevis.data.leakage import SplitCheck
from edgevis.data.mask_split import split_masks
from edgevis.metrics.jackknife import mean_of_ratios
from edgevis.training.resume import BEST
from runtime.common.command import run_command

Mask = NDArray[np.bool_]

SIZES = ("size: small", "size: middle", "size: large")
ANGLES = ("angle: 0-15", "angle: 15-30", "angle: 30-45")
DISTANCES = ("distance: outside", "distance: 0-0.25", "distance: 0.25-0.5", "distance: 0.5-1")
ALL = "all"
BINS = (ALL, *SIZES, *ANGLES, *DISTANCES)

_BLUR = 1.0
"""Standard deviation, in pixels, of the smoothing that gives an outline made of pixels its direction."""


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """The errors of one arm in one bin.

    Attributes:
        arm: Its name.
        bin: One of :data:`BINS`.
        missed, false: Pixels for every hundred of the true object's (of the size's objects in a bin of sizes); means
            over the trainings.
        both: Their sum, with its interval over trainings, or over volumes of a single one.
        difference: Of the sum to the first arm's; None for that arm.
    """

    arm: str
    bin: str
    missed: float
    false: float
    both: Figure
    difference: Figure | None


def angle_to_sides(true: Mask) -> NDArray[np.float64]:
    """For each pixel the angle between the nearest outline and the nearest axis, (H, W), 0 to 45 degrees.

    Args:
        true: (H, W), an object.
    """
    padded = np.pad(true, 1).astype(np.uint8)
    inside = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    smooth = cv2.GaussianBlur(inside - outside, (0, 0), _BLUR)
    down, right = np.gradient(smooth.astype(np.float64))
    angle = np.degrees(np.arctan2(np.abs(down), np.abs(right)))
    return np.asarray(np.minimum(angle, 90 - angle)[1:-1, 1:-1], np.float64)


def inner_distance(true: Mask) -> NDArray[np.float64]:
    """For each pixel the distance from the nearest side of the object's box, (H, W), in shares of half the box's
    shorter side: 0 to 1 inside, below 0 outside.
    """
    down, right = (np.flatnonzero(true.any(axis)) for axis in (1, 0))
    rows, columns = np.mgrid[: true.shape[0], : true.shape[1]]
    nearest = np.minimum.reduce(
        [rows - down[0] + 0.5, down[-1] - rows + 0.5, columns - right[0] + 0.5, right[-1] - columns + 0.5]
    )
    return np.asarray(nearest / (min(len_of(down), len_of(right)) / 2), np.float64)


def len_of(places: NDArray[np.intp]) -> int:
    """From the first to the last of sorted places, both included."""
    return int(places[-1] - places[0]) + 1


def errors_by_place(found: Mask, true: Mask) -> dict[str, tuple[int, int]]:
    """Missed and false pixels by angle and distance, and all of them.

    Args:
        found, true: (H, W); ``true`` shows an object.
    """
    missed, false = true & ~found, found & ~true
    angle, inner = angle_to_sides(true), inner_distance(true)
    places = {
        ALL: np.ones_like(true),
        **dict(zip(ANGLES, (angle < 15, (angle >= 15) & (angle < 30), angle >= 30), strict=True)),
        **dict(
            zip(
                DISTANCES,
                (inner < 0, (inner >= 0) & (inner < 0.25), (inner >= 0.25) & (inner < 0.5), inner >= 0.5),
                strict=True,
            )
        ),
    }
    return {name: (int((missed & place).sum()), int((false & place).sum())) for name, place in places.items()}


def counted(found: Sequence[Mask], true: Sequence[Mask], volumes: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """For each bin missed pixels, false ones and the true objects' pixels of each volume, (V, 3)."""
    areas = np.array([mask.sum() for mask in true])
    errors = [errors_by_place(one, other) for one, other in zip(found, true, strict=True)]
    number = {name: place for place, name in enumerate(sorted(set(volumes)))}
    thirds = np.array_split(np.argsort(areas, kind="stable"), len(SIZES))
    bins = {name: (name, range(len(true))) for name in (ALL, *ANGLES, *DISTANCES)}
    bins |= {name: (ALL, places.tolist()) for name, places in zip(SIZES, thirds, strict=True)}
    result = {name: np.zeros((len(number), 3)) for name in BINS}
    for name, (kind, places) in bins.items():
        for place in places:
            result[name][number[volumes[place]]] += (*errors[place][kind], areas[place])
    return result


def _of_hundred(counts: NDArray[np.float64]) -> tuple[float, float]:
    """Missed and false pixels for every hundred of the true objects'."""
    missed, false, area = counts.sum(0).tolist()
    return 100 * missed / area, 100 * false / area


def _units(trainings: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Missed and false pixels together: of each training, or of one training's volumes the pseudo-values."""
    if len(trainings) > 1:
        return np.array([sum(_of_hundred(counts)) for counts in trainings])
    counts = trainings[0]
    return mean_of_ratios(100 * (counts[:, :1] + counts[:, 1:2]), counts[:, 2:])[1]


def _found(weights: Path, images: Sequence[NDArray[np.uint8]]) -> list[Mask]:
    """The masks of trained weights, each of its image's size."""
    if not weights.exists():
        raise InputError(f"{weights} is missing: train all arms first")
    segment = TrainedSegmenter(weights)
    return [segment(image) for image in images]


def measure(data: Path, runs: Path, seeds: Sequence[int], arms: Sequence[str]) -> list[ErrorRow]:
    """A row per bin and arm.

    Args:
        data: As of ``benchmarks.accuracy boxes``.
        runs: Its output: ``seedN/ARM``.
        seeds: N of each training.
        arms: The first is what the others are compared with.

    Raises:
        InputError: A training is missing.
    """
    split = split_masks(data, held_out=0.15, from_boxes=True, seed=0, check=SplitCheck())
    images, true, volumes = [], [], []
    for place in split.test:
        image, ids, *_ = split.data[place]
        if ids.any():
            images.append(image)
            true.append(ids > 0)
            volumes.append(split.data.volumes[place])
    values = {
        arm: [counted(_found(runs / f"seed{seed}" / arm / BEST, images), true, volumes) for seed in seeds]
        for arm in arms
    }
    rows = []
    for name in BINS:
        units = {arm: _units([one[name] for one in values[arm]]) for arm in arms}
        for arm in arms:
            missed, false = np.mean([_of_hundred(one[name]) for one in values[arm]], 0).tolist()
            by = None if arm == arms[0] else Figure.difference(units[arm], units[arms[0]])
            rows.append(ErrorRow(arm, name, missed, false, Figure.of(missed + false, units[arm]), by))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; an EdgevisError becomes one line and exit status 1."""
    known = tuple(variant.name for variant in COMPARISONS["boxes"].variants)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.box_errors", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", metavar="PATH", type=Path, required=True, help="as of benchmarks.accuracy")
    parser.add_argument(
        "--runs", metavar="DIR", type=Path, required=True, help="its output, with a folder for each seed"
    )
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--arms", metavar="ARM", nargs="+", choices=known, default=known, help="(default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: measure(arguments.data, arguments.runs, arguments.seeds, arguments.arms),
        headers=("where", "arm", "missed", "false", "both", "to the first"),
        cells=_cells,
        as_json=arguments.json,
    )


def _cells(row: ErrorRow) -> tuple[str, ...]:
    return (
        row.bin,
        row.arm,
        f"{row.missed:.1f}",
        f"{row.false:.1f}",
        figure_text(row.both, digits=1),
        figure_text(row.difference, sign="+", digits=1),
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
