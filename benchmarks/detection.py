"""Average precision and latency of detectors: ``python -m benchmarks.detection --bundle B.edgevis --data sample.zip``.

The data is what ``edgevis.train`` learns detection from: COCO's JSON, PASCAL VOC's folders, or a folder or zip of
``images/`` with boxes; the images of its split ``test`` are measured, which of a sample of COCO are those of val2017.
Every engine of every bundle detects them through ``Predictor.predict`` at a low threshold, with the suppression that
the bundle declares. COCO's AP is over the classes that both the data and the bundle name; beside it stand AP and AP50
of one of them. Then all engines predict the same images in turn: a busy machine slows all of them down alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figure import Figure, figure_text
from benchmarks.report import report
from edgevis import InputError, Predictor
from edgevis.data.detection import BoxLabels, DetectionImages, chosen_classes
from edgevis.data.detection_split import read_detection_images
from edgevis.metrics.average_precision import AveragePrecision, Detected, average_precision
from runtime.bundle.bundle import Bundle
from runtime.images.decode import Image
from runtime.parity.latency import interleaved
from runtime.verification.timing import each_engine

SCORE = 0.01
"""The threshold at which AP is measured: what scores less adds nothing to it that counts."""

HEADERS = ("detector", "images", "AP", "AP50", "of", "AP", "AP50", "engine ms", "least", "predict ms")

_TIMED_IMAGES = 8


@dataclass(frozen=True, slots=True)
class DetectorRow:
    """The accuracy and latency of one engine.

    Attributes:
        detector: The bundle's and the engine's name.
        images: How many were measured.
        classes: How many classes both the data and the bundle name.
        ap, ap_50: COCO's, over these classes.
        label: One class.
        label_ap, label_ap_50: Of this class.
        engine_ms: The median time of the engine, of one image.
        engine_least_ms: The least one, which other work on the machine disturbs least.
        predict_ms: The median time of ``Predictor.predict``.
    """

    detector: str
    images: int
    classes: int
    ap: Figure
    ap_50: Figure
    label: str
    label_ap: Figure
    label_ap_50: Figure
    engine_ms: float
    engine_least_ms: float
    predict_ms: float

    def cells(self) -> tuple[str, ...]:
        """The row's cells under :data:`HEADERS`."""
        return (
            self.detector,
            str(self.images),
            *(figure_text(figure) for figure in (self.ap, self.ap_50)),
            self.label,
            *(figure_text(figure) for figure in (self.label_ap, self.label_ap_50)),
            *(f"{ms:.1f}" for ms in (self.engine_ms, self.engine_least_ms, self.predict_ms)),
        )


def measure(
    bundles: Sequence[Path],
    data: DetectionImages,
    *,
    label: str,
    score: float = SCORE,
    threads: int | None = None,
    seconds: float = 2.0,
    engines: Sequence[str] = (),
) -> list[DetectorRow]:
    """Measure every engine of the bundles that opens here.

    Args:
        bundles: Of the task ``detect``.
        data: Images and boxes; only those of the split ``test`` count, where the data say.
        label: The class that is measured alone.
        score: The threshold.
        threads: CPU threads of each engine.
        seconds: The measuring time for each engine.
        engines: Names such as ``openvino-int8``; empty for all.

    Raises:
        InputError: No engine is left, one is no detector, or has not the class.
        EdgevisError: A bundle or the data cannot be read.
    """
    places = [place for place in range(len(data)) if data.roles is None or data.roles[place] == "test"]
    if not places:
        raise InputError(f"{data.files.path} has no images of the split 'test'")
    with ExitStack() as stack:
        predictors: dict[str, Predictor] = {}
        for path in bundles:
            for name, predictor in each_engine(Bundle(path), threads=threads):
                stack.enter_context(predictor)
                if predictor.info.task != "detect":
                    raise InputError(f"{path}: the task is {predictor.info.task!r}; allowed: 'detect'")
                if not engines or name in engines:
                    predictor.threshold = score
                    predictors[f"{path.stem} {name}"] = predictor
        if not predictors:
            raise InputError("no engine is left to measure; allowed: those that the bundles have")
        accuracy = {name: _accuracy(predictor, data, places, label) for name, predictor in predictors.items()}
        timed = _timed(predictors, [data[place][0] for place in places[:_TIMED_IMAGES]], seconds=seconds)
    return [DetectorRow(name, len(places), *figures, *timed[name]) for name, figures in accuracy.items()]


def _accuracy(
    predictor: Predictor, data: DetectionImages, places: Sequence[int], label: str
) -> tuple[int, Figure, Figure, str, Figure, Figure]:
    """The columns of :class:`DetectorRow` from ``classes`` to ``label_ap_50``."""
    shared = [name for name in data.classes if name in predictor.labels]
    if label not in shared:
        raise InputError(f"both the data and the bundle need the class {label!r}; both have: {', '.join(shared)}")
    chosen = chosen_classes(data, ",".join(shared))
    truths, detections = [], []
    for place in places:
        image, boxes = chosen[place]
        truths.append(boxes)
        detections.append(_detected(predictor.predict(image), shared))
    every = average_precision(truths, detections, classes=len(shared))
    number = shared.index(label)
    alone = average_precision(
        [_only(boxes, number) for boxes in truths], [_one_class(item, number) for item in detections], classes=1
    )
    return len(shared), *figures_of(every), label, *figures_of(alone)


def _detected(found: Any, classes: Sequence[str]) -> Detected:
    """The detections of the shared classes, with the positions of these as class ids."""
    numbers = np.array([classes.index(name) if name in classes else -1 for name in found.labels], np.int64)
    kept = numbers >= 0
    return found.boxes_xyxy[kept], found.scores[kept], numbers[kept]


def _only(labels: BoxLabels, number: int) -> BoxLabels:
    kept = labels[labels.classes == number]
    return BoxLabels(kept.boxes, np.zeros(len(kept), np.int64), kept.weights, kept.ignored)


def _one_class(detected: Detected, number: int) -> Detected:
    boxes, scores, class_ids = detected
    kept = class_ids == number
    return boxes[kept], scores[kept], np.zeros(int(kept.sum()), np.int64)


def figures_of(found: AveragePrecision) -> tuple[Figure, Figure]:
    """AP and AP50 with their intervals over images."""
    return Figure.of(found.value, found.samples), Figure.of(found.at_50, found.samples_50)


class _TimedDetector:
    """Detects the same images in turn and keeps the times."""

    def __init__(self, predictor: Predictor, images: Sequence[Image]) -> None:
        self._predictor, self._images = predictor, images
        self._calls = 0
        self.engine_ms: list[float] = []

    def __call__(self) -> None:
        found = self._predictor.predict(self._images[self._calls % len(self._images)])
        self._calls += 1
        self.engine_ms.append(found.speed_ms["inference"])


def _timed(
    predictors: Mapping[str, Predictor], images: Sequence[Image], *, seconds: float
) -> dict[str, tuple[float, float, float]]:
    """The last three columns of :class:`DetectorRow`, by engine."""
    calls = {name: _TimedDetector(predictor, images) for name, predictor in predictors.items()}
    latencies = interleaved(calls, seconds=seconds * len(calls))
    return {
        name: (statistics.median(call.engine_ms), min(call.engine_ms), latencies[name].p50_ms)
        for name, call in calls.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per engine; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--bundle", type=Path, nargs="+", required=True, help="measure every engine of these")
    parser.add_argument("--data", type=Path, required=True, help="folder or zip of images with boxes")
    parser.add_argument("--label", default="person", help="the class that is measured alone (default: person)")
    parser.add_argument("--score", type=float, default=SCORE, help=f"threshold of AP (default: {SCORE})")
    parser.add_argument(
        "--engine", action="append", default=[], help="only these, such as openvino-int8; may be repeated"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of each engine")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time for each engine (default: 2)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    return report(
        lambda: measure(
            arguments.bundle,
            read_detection_images(arguments.data),
            label=arguments.label,
            score=arguments.score,
            threads=arguments.threads,
            seconds=arguments.seconds,
            engines=arguments.engine,
        ),
        headers=HEADERS,
        cells=DetectorRow.cells,
        as_json=arguments.json,
    )


if __name__ == "__main__":
    sys.exit(main())
