r"""Borders of masks and milliseconds, bundles side by side: a refined network beside the same one, enlarged plainly.

    python -m benchmarks.boundaries upsampled.edgevis pointrend.edgevis --data ccp_dev.zip

Every engine of every bundle finds the object on the pictures of the split ``val``, through ``Predictor``. Boundary IoU
(:mod:`edgevis.metrics.boundary`) and IoU are means over images with 95 % intervals. Differences are on the same images:
to the same engine of the first bundle, and to the first engine of the same bundle, which is what a precision costs. All
engines are timed in turn, on one picture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.figure import Figure, figure_text
from benchmarks.report import report
from edgevis import Predictor, Segmentation
from edgevis.data.files import open_files
from edgevis.data.segmentation import index_rows, instance_images, masked_images
from edgevis.metrics import boundary_iou_per_volume, dice_per_volume
from runtime.bundle.bundle import Bundle
from runtime.common.command import run_command
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.parity.latency import interleaved
from runtime.verification.timing import each_engine

_SPLIT = "val"
_COMPARED = ("to the first bundle", "to the first engine")
Mask = NDArray[np.bool_]
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BoundaryRow:
    """One engine of one bundle.

    Attributes:
        bundle, engine: Their names.
        images: How many were measured.
        iou, boundary_iou: Means, 0 to 1, with intervals over images.
        iou_difference, boundary_difference: To the first bundle's engine of that name; None for itself, and where it
            has none.
        iou_to_first_engine, boundary_to_first_engine: To the bundle's first engine; None for itself.
        p50_ms: The median of one prediction, preprocessing included.
    """

    bundle: str
    engine: str
    images: int
    iou: Figure
    boundary_iou: Figure
    iou_difference: Figure | None
    boundary_difference: Figure | None
    iou_to_first_engine: Figure | None
    boundary_to_first_engine: Figure | None
    p50_ms: float


def measure(
    bundles: Sequence[Path], data: Path, *, seconds: float = 5.0, threads: int | None = None
) -> list[BoundaryRow]:
    """A row for each engine that opens here.

    Args:
        bundles: Of the task ``segment``; the first is what the others are compared with.
        data: As of ``edgevis.train`` for that task; all that is not 0 in a mask is the object.
        seconds: Of timing, for each engine.
        threads: Of each engine; None for the backend's choice.

    Raises:
        EdgevisError: The message says what is wrong.
    """
    pairs = _pictures(data)
    scores: dict[tuple[str, str], tuple[Values, Values]] = {}
    with ExitStack() as stack:
        opened: dict[tuple[str, str], Predictor] = {}
        for path in bundles:
            for engine, predictor in each_engine(Bundle(path), threads=threads):
                opened[path.stem, engine] = stack.enter_context(predictor)
        for key, predictor in opened.items():
            found = [_mask(predictor, image) for image, _ in pairs]
            scores[key] = _scores(found, [true for _, true in pairs])
        calls = {" ".join(key): partial(predictor.predict, pairs[0][0]) for key, predictor in opened.items()}
        latencies = interleaved(calls, seconds=seconds * len(calls))
    first = bundles[0].stem
    first_engines: dict[str, tuple[str, str]] = {}
    rows = []
    for key, own in scores.items():
        reference = scores.get((first, key[1])) if key[0] != first else None
        first_engine = first_engines.setdefault(key[0], key)
        same_bundle = scores[first_engine] if key != first_engine else None
        rows.append(
            BoundaryRow(
                *key,
                len(pairs),
                Figure.mean_of(own[0]),
                Figure.mean_of(own[1]),
                *_differences(own, reference),
                *_differences(own, same_bundle),
                latencies[" ".join(key)].p50_ms,
            )
        )
    return rows


def _differences(
    own: tuple[Values, Values], other: tuple[Values, Values] | None
) -> tuple[Figure | None, Figure | None]:
    """Of IoU and boundary IoU."""
    if other is None:
        return None, None
    iou, borders = (Figure.difference(one, reference) for one, reference in zip(own, other, strict=True))
    return iou, borders


def _pictures(data: Path) -> list[tuple[Image, Mask]]:
    files = open_files(data)
    rows = index_rows(files, _SPLIT)
    read = instance_images(files, rows) if "boxes_xyxy.json" in files.names else masked_images(files, rows)
    if len(rows) < 2:
        raise InputError(f"{data} has {len(rows)} picture of the split {_SPLIT!r}; allowed: two or more")
    return [(item[0], np.asarray(item[1] > 0, np.bool_)) for item in (read[place] for place in range(len(rows)))]


def _mask(predictor: Predictor, image: Image) -> Mask:
    result = predictor.predict(image)
    if not isinstance(result, Segmentation):
        raise InputError(f"a bundle of the task {predictor.info.task!r}; allowed: 'segment'")
    return np.asarray(result.mask, np.bool_)


def _scores(found: Sequence[Mask], true: Sequence[Mask]) -> tuple[Values, Values]:
    """IoU and boundary IoU of each image."""
    names = [str(number) for number in range(len(found))]
    dice = np.array(list(dice_per_volume(found, true, names).values()))
    return dice / (2 - dice), np.array(list(boundary_iou_per_volume(found, true, names).values()))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.boundaries", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+")
    parser.add_argument("--data", metavar="PATH", type=Path, required=True, help="pictures with masks")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, for each engine (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the backends' choice)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: measure(arguments.bundles, arguments.data, seconds=arguments.seconds, threads=arguments.threads),
        headers=("bundle", "engine", "IoU", *_COMPARED, "boundary IoU", *_COMPARED, "ms"),
        cells=_cells,
        as_json=arguments.json,
    )


def _cells(row: BoundaryRow) -> tuple[str, ...]:
    return (
        row.bundle,
        row.engine,
        figure_text(row.iou),
        figure_text(row.iou_difference, sign="+"),
        figure_text(row.iou_to_first_engine, sign="+"),
        figure_text(row.boundary_iou),
        figure_text(row.boundary_difference, sign="+"),
        figure_text(row.boundary_to_first_engine, sign="+"),
        f"{row.p50_ms:.1f}",
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
