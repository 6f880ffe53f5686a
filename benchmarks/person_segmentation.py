r"""How well masks of persons overlap with the true ones: trained weights and bundles beside what their boxes give.

    python -m benchmarks.person_segmentation --data person_boxes.zip \
        --weights edgevis/weights/person-segmenter.safetensors --bundle bundles/person-segmenter.edgevis

``person_boxes.zip`` is what ``benchmarks.person_boxes`` writes; its pictures of the split ``val`` are measured. What
anyone has without a training, given the boxes: the boxes filled, and GrabCut (Rother, Kolmogorov, Blake, SIGGRAPH 2004)
that begins with them. A network sees no box; the rows *in the boxes* drop what it finds outside of them, as one does
with a detector's crop. IoU is of all persons of a picture; its mean is over photographs, and so is the 95 % interval.
The last column is the difference to the boxes filled.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.figure import Figure, figure_text
from benchmarks.report import report
from benchmarks.trained_weights import TrainedSegmenter
from edgevis import Predictor, Segmentation
from edgevis.data.files import open_files
from edgevis.data.segmentation import InstanceImages, read_instances
from runtime.bundle.bundle import Bundle
from runtime.common.command import run_command
from runtime.errors import InputError
from runtime.images.decode import Image
from runtime.verification.timing import each_engine

Mask = NDArray[np.bool_]
Boxes = NDArray[np.int64]
Find = Callable[[Image], Mask]

FILLED = "boxes filled"
_GRABCUT_ROUNDS = 5
_SPLIT = "val"


@dataclass(frozen=True, slots=True)
class PersonMaskScores:
    """The overlap of one method's masks with the true ones.

    Attributes:
        source: Where the photographs are from.
        method: What found the masks.
        pictures, photographs: Numbers of them; several pictures may be parts of one photograph.
        iou: 0 to 1, with its interval over photographs.
        difference: To the boxes filled; None for themselves.
    """

    source: str
    method: str
    pictures: int
    photographs: int
    iou: Figure
    difference: Figure | None


def filled(image: Image, boxes: Boxes) -> Mask:
    """All of the boxes; ``boxes`` is (I, 4), x1, y1, x2, y2, inclusive."""
    mask = np.zeros(image.shape[:2], np.bool_)
    for x1, y1, x2, y2 in boxes.tolist():
        mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return mask


def grab_cut(image: Image, boxes: Boxes, found: Mask | None = None) -> Mask:
    """GrabCut's mask, (H, W); the boxes or what was found, where it finds nothing.

    Args:
        image: (H, W, 3) uint8 BGR.
        boxes: (I, 4), x1, y1, x2, y2, inclusive: what is outside of them is background.
        found: (H, W), what in the boxes is perhaps the object, the rest of them perhaps not; None for all of them.
    """
    inside = filled(image, boxes)
    start = inside if found is None or not (found & inside).any() else found & inside
    guess = np.where(inside, np.where(start, cv2.GC_PR_FGD, cv2.GC_PR_BGD), cv2.GC_BGD).astype(np.uint8)
    nowhere: Any = None  # which cv2's stubs do not allow
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(image, guess, nowhere, np.zeros((1, 65)), np.zeros((1, 65)), _GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # all of the picture is perhaps the object: nothing models the background
        return start
    cut = np.asarray((guess == cv2.GC_FGD) | (guess == cv2.GC_PR_FGD), np.bool_)
    return cut if cut.any() else start


class BundledSegmenter:
    """Masks of one engine of a bundle, through ``Predictor``.

    Args:
        predictor: Of segmentation.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def __call__(self, image: Image) -> Mask:
        result = self._predictor.predict(image)
        if not isinstance(result, Segmentation):
            raise InputError("the bundle is not of segmentation")
        return np.asarray(result.mask, np.bool_)


def overlap(found: Mask, true: Mask) -> float:
    """The intersection over the union of two (H, W) masks; 1 where both are empty."""
    union = np.count_nonzero(found | true)
    return np.count_nonzero(found & true) / union if union else 1.0


def measure(data: InstanceImages, sources: Sequence[str], methods: Mapping[str, Find]) -> list[PersonMaskScores]:
    """A row per source and method.

    Args:
        data: Pictures, masks and boxes; ``volumes`` are the photographs.
        sources: Of each picture.
        methods: By name; each besides without what lies outside of the boxes.
    """
    names = [FILLED, "GrabCut"]
    for name in methods:
        names += [name, f"{name} in the boxes"]
    values: dict[str, list[float]] = {name: [] for name in names}
    for image, ids, boxes in (data[place] for place in range(len(data))):
        true, inside = ids > 0, filled(image, boxes)
        values[FILLED].append(overlap(inside, true))
        values["GrabCut"].append(overlap(grab_cut(image, boxes), true))
        for name, find in methods.items():
            found = find(image)
            values[name].append(overlap(found, true))
            values[f"{name} in the boxes"].append(overlap(found & inside, true))
    rows = []
    for source in sorted(set(sources)):
        places = [place for place, of in enumerate(sources) if of == source]
        photographs = sorted({data.volumes[place] for place in places})
        units = {
            name: np.array(
                [np.mean([scores[place] for place in places if data.volumes[place] == one]) for one in photographs]
            )
            for name, scores in values.items()
        }
        for name, unit in units.items():
            by = None if name == FILLED else Figure.difference(unit, units[FILLED])
            rows.append(PersonMaskScores(source, name, len(places), len(photographs), Figure.mean_of(unit), by))
    return rows


def _measured(arguments: argparse.Namespace) -> list[PersonMaskScores]:
    data = read_instances(arguments.data, split=_SPLIT)
    table = csv.DictReader(io.StringIO(open_files(arguments.data).text("index.csv")))
    source_of = {row["stem"]: row.get("source", "") for row in table}
    sources = [source_of[Path(name).stem] for name in data.images]
    methods: dict[str, Find] = {
        **{str(path): TrainedSegmenter(path) for path in arguments.weights},
        **{
            f"{path.stem} {engine}": BundledSegmenter(predictor)
            for path in arguments.bundle
            for engine, predictor in each_engine(Bundle(path), threads=1)
        },
    }
    return measure(data, sources, methods)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.person_segmentation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", metavar="PATH", type=Path, required=True, help="what benchmarks.person_boxes wrote")
    parser.add_argument("--weights", metavar="FILE", type=Path, nargs="+", default=[], help="trained weights")
    parser.add_argument("--bundle", metavar="PATH", type=Path, nargs="+", default=[], help="all of their engines")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: _measured(arguments),
        headers=("photographs", "method", "pictures", "IoU", "to the boxes filled"),
        cells=_cells,
        as_json=arguments.json,
    )


def _cells(row: PersonMaskScores) -> tuple[str, ...]:
    return (
        f"{row.photographs} {row.source}",
        row.method,
        str(row.pictures),
        figure_text(row.iou),
        figure_text(row.difference, sign="+"),
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
