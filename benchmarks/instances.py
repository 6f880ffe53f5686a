"""Average precision of instance masks: ``python -m benchmarks.instances --bundle B.edgevis --data nuclei.zip``.

The data is what ``edgevis train`` learns outlines from; the images of its split ``test`` are measured, or of ``val``
where it has none. Every engine of every bundle predicts them through ``Predictor.predict``. Outlines are taken at a low
threshold. A bundle of the task ``segment`` is measured by the connected regions of its mask, corners included, each
with its mean probability as the score. COCO's AP is of masks and of the boxes around them, of boxes that the bundle
gives where it gives any, all classes being one. ± is half of the 95 % interval over images (jackknife); the difference
is to the first row, on the same images.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.detection import figures_of
from benchmarks.figure import Figure, figure_text
from benchmarks.report import report
from edgevis import InputError, InstanceSegmentation, Predictor
from edgevis.data.detection import box_labels
from edgevis.data.detection_split import read_detection_images
from edgevis.data.instances import LabelledInstances
from edgevis.metrics.average_precision import (
    MAX_DETECTIONS,
    AveragePrecision,
    Detected,
    EncodedMask,
    InstanceMasks,
    average_precision,
    encoded_mask,
)
from runtime.bundle.bundle import Bundle
from runtime.verification.timing import each_engine

SCORE = 0.01
"""The threshold at which AP is measured."""

HEADERS = (
    "bundle",
    "images",
    "mask AP",
    "to the first",
    "mask AP50",
    "to the first",
    "box AP",
    "box AP50",
    "predict ms",
)


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """The accuracy of one engine.

    Attributes:
        bundle: The bundle's and the engine's name.
        images: How many were measured.
        mask_ap, mask_ap_50, box_ap, box_ap_50: COCO's.
        mask_difference, mask_difference_50: Of the masks' to those of the first row; None for that row, and of a single
            image.
        predict_ms: The median time of ``Predictor.predict``.
    """

    bundle: str
    images: int
    mask_ap: Figure
    mask_ap_50: Figure
    box_ap: Figure
    box_ap_50: Figure
    mask_difference: Figure | None
    mask_difference_50: Figure | None
    predict_ms: float

    def cells(self) -> tuple[str, ...]:
        """The row's cells under :data:`HEADERS`."""
        return (
            self.bundle,
            str(self.images),
            figure_text(self.mask_ap),
            figure_text(self.mask_difference, sign="+"),
            figure_text(self.mask_ap_50),
            figure_text(self.mask_difference_50, sign="+"),
            figure_text(self.box_ap),
            figure_text(self.box_ap_50),
            f"{self.predict_ms:.1f}",
        )


def measure(
    bundles: Sequence[Path], path: Path, *, threads: int | None = None, engines: Sequence[str] = ()
) -> list[InstanceRow]:
    """Measure every engine of the bundles that opens here.

    Args:
        bundles: Of the tasks ``instance_segment`` and ``segment``.
        path: Images with the pixels of their objects.
        threads: CPU threads of each engine.
        engines: Names such as ``openvino-int8``; empty for all.

    Raises:
        InputError: No engine is left, one is of another task, or no image evaluates.
        EdgevisError: A bundle or the data cannot be read.
    """
    instances, places = evaluated_instances(path)
    rows: list[InstanceRow] = []
    first: AveragePrecision | None = None
    with ExitStack() as stack:
        for bundle in bundles:
            for name, predictor in each_engine(Bundle(bundle), threads=threads):
                stack.enter_context(predictor)
                if predictor.info.task not in ("instance_segment", "segment"):
                    raise InputError(
                        f"{bundle}: the task is {predictor.info.task!r}; allowed: 'instance_segment', 'segment'"
                    )
                if not engines or name in engines:
                    row, by_masks = _row(f"{bundle.stem} {name}", predictor, instances, places, first)
                    rows.append(row)
                    first = first or by_masks
    if not rows:
        raise InputError("no engine is left to measure; allowed: those that the bundles have")
    return rows


def evaluated_instances(path: Path) -> tuple[LabelledInstances, list[int]]:
    """The images of a data set with their objects, and the positions of those that are measured.

    Raises:
        SourceError: The data cannot be read.
    """
    annotated = read_detection_images(path)
    roles = annotated.roles or ("test",) * len(annotated)
    evaluates = "test" if "test" in roles else "val"
    places = [place for place, role in enumerate(roles) if role == evaluates]
    return LabelledInstances(annotated, annotated.classes), places


def _row(
    name: str,
    predictor: Predictor,
    instances: LabelledInstances,
    places: Sequence[int],
    first: AveragePrecision | None,
) -> tuple[InstanceRow, AveragePrecision]:
    """A row and its figures of masks; ``first`` are those of the first row."""
    if predictor.info.task == "instance_segment":
        predictor.threshold = SCORE
    truths, detections, times = [], [], []
    truth_masks: list[list[EncodedMask]] = []
    masks: list[list[EncodedMask]] = []
    for place in places:
        view = instances[place]
        labels, numbers = view.labels()
        truths.append(box_labels(labels.boxes, np.zeros(len(labels)), ignored=labels.ignored))
        truth_masks.append([encoded_mask(view.ids == number) for number in numbers.tolist()])
        started = time.perf_counter()
        result = predictor.predict(view.image)
        times.append(1000 * (time.perf_counter() - started))
        detected, found = _found(result)
        detections.append(detected)
        masks.append(found)
    by_masks = average_precision(truths, detections, classes=1, masks=InstanceMasks(truth_masks, masks))
    by_boxes = average_precision(truths, detections, classes=1)
    figures = (*figures_of(by_masks), *figures_of(by_boxes))
    differences: tuple[Figure | None, Figure | None] = (None, None)
    if first is not None and len(places) > 1:
        differences = (
            Figure.difference(by_masks.samples, first.samples),
            Figure.difference(by_masks.samples_50, first.samples_50),
        )
    return InstanceRow(name, len(places), *figures, *differences, float(np.median(times))), by_masks


def _found(result: Any) -> tuple[Detected, list[EncodedMask]]:
    if isinstance(result, InstanceSegmentation):
        boxes = (result.boxes_xyxy, result.scores, np.zeros(len(result), np.int64))
        return boxes, [encoded_mask(result.mask(place)) for place in range(len(result))]
    regions = sorted(_regions(result.mask, result.probability), key=lambda region: -region[1])[:MAX_DETECTIONS]
    table = np.array([box for box, _, _ in regions], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in regions], np.float32)
    return (table, scores, np.zeros(len(regions), np.int64)), [encoded_mask(mask) for _, _, mask in regions]


def _regions(
    mask: NDArray[np.bool_], probability: NDArray[np.float32]
) -> Iterator[tuple[list[int], float, NDArray[np.bool_]]]:
    """Box, score and mask of each connected region."""
    count, numbers, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    for number in range(1, count):
        region = numbers == number
        x, y, width, height = statistics[number, :4].tolist()
        yield [x, y, x + width, y + height], float(probability[region].mean()), region


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per engine; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instances", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--bundle", type=Path, nargs="+", required=True, help="measure every engine of these")
    parser.add_argument("--data", type=Path, required=True, help="folder or zip of images with the pixels of objects")
    parser.add_argument(
        "--engine", action="append", default=[], help="only these, such as openvino-int8; may be repeated"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of each engine")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: measure(arguments.bundle, arguments.data, threads=arguments.threads, engines=arguments.engine),
        headers=HEADERS,
        cells=InstanceRow.cells,
        as_json=arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
