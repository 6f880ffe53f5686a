"""Detectors of persons on photographs, on near persons and on a fixed camera.

    python -m benchmarks.person_detection DETECTOR... --photos coco_sample_dev.zip --near ccp_dev.zip \
        --video one-by-one-person-detection.mp4 --boxes one-by-one-person-detection.csv --frames 700-1393

A detector is a bundle, MODEL=WEIGHTS (run by PyTorch), or an .onnx file with DETR's interface. Photographs: COCO's
average precision of persons on the photos with coco_split=val2017, which detectors trained on COCO have not seen. Near
persons: clothing photographs of the split val, the box around the mask of the only person that is annotated. Video:
persons higher than 120 pixels who are not cut off by the image's edge, found at score 0.5 and IoU 0.5, and boxes at
score 0.5 on frames without a label. Intervals are 95 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.figure import Figure, figure_text
from benchmarks.report import report
from edgevis.data.detection import BoxLabels, box_labels, chosen_classes
from edgevis.data.detection_split import read_detection_images
from edgevis.data.files import open_files
from edgevis.metrics.average_precision import AveragePrecision, average_precision
from edgevis.metrics.jackknife import mean_of_ratios
from edgevis.pseudo_labels.box_fusion import box_iou
from edgevis.pseudo_labels.pictures import PictureSource, pictures_of
from edgevis.pseudo_labels.teachers import LabellingTeacher, open_teacher
from runtime.errors import InputError, SourceError
from runtime.images.decode import Image

PERSON = "person"
_LOW, _USED, _IOU = 0.001, 0.5, 0.5
_HIGH_PX = 120


@dataclass(frozen=True, slots=True)
class PersonScores:
    """What one detector scored; None of what was not measured.

    Attributes:
        detector: Its name.
        photos: Photographs.
        photos_ap, photos_ap50: With their intervals over photographs.
        near: Photographs of near persons.
        near_ap50: Likewise.
        near_recall: The share of the annotated persons that are found at score 0.5 and IoU 0.5.
        boxes: Persons of the video that were looked for.
        recall: The share of them that was found.
        empty: Frames without a label.
        false_boxes: Boxes on these.
    """

    detector: str
    photos: int = 0
    photos_ap: Figure | None = None
    photos_ap50: Figure | None = None
    near: int = 0
    near_ap50: Figure | None = None
    near_recall: float | None = None
    boxes: int = 0
    recall: Figure | None = None
    empty: int = 0
    false_boxes: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Detections:
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]


def _persons(detector: LabellingTeacher, image: Image) -> _Detections:
    boxes, scores, labels = detector.detect(image)
    chosen = np.array([label == PERSON for label in labels], bool)
    return _Detections(boxes[chosen], scores[chosen])


def _precision(
    detector: LabellingTeacher, labelled: Iterable[tuple[Image, BoxLabels]]
) -> tuple[AveragePrecision, float]:
    """Average precision, and the recall at the score and IoU that are used."""
    truths, detections, true_positives, annotated = [], [], 0, 0
    for image, labels in labelled:
        persons = _persons(detector, image)
        truths.append(labels)
        detections.append(
            (persons.boxes.astype(np.float32), persons.scores.astype(np.float32), np.zeros(len(persons.boxes)))
        )
        boxes = labels.boxes[~labels.ignored].astype(np.float64)
        true_positives += int(_are_detected(boxes, persons).sum())
        annotated += len(boxes)
    result = average_precision(
        truths, [(boxes, scores, ids.astype(np.int64)) for boxes, scores, ids in detections], classes=1
    )
    return result, true_positives / max(annotated, 1)


def _are_detected(boxes: NDArray[np.float64], persons: _Detections) -> NDArray[np.bool_]:
    overlaps = box_iou(boxes, persons.boxes[persons.scores >= _USED])
    return np.asarray((overlaps >= _IOU).any(axis=1), np.bool_)


def photographs(path: Path) -> Iterator[tuple[Image, BoxLabels]]:
    """The photos that detectors trained on COCO have not seen, with the boxes of persons.

    Raises:
        SourceError, InputError: The data are others.
    """
    data = chosen_classes(read_detection_images(path), PERSON)
    if not data.rows or "coco_split" not in data.rows[0]:
        raise InputError(f"{path} does not say which photos are of COCO's val2017: its index.csv has no coco_split")
    for place, row in enumerate(data.rows):
        if row["coco_split"] == "val2017":
            yield data[place]


def near_persons(path: Path) -> Iterator[tuple[Image, BoxLabels]]:
    """The clothing photographs of the split ``val``; the box is around all that is not background.

    Raises:
        SourceError: The data are others.
    """
    files = open_files(path)
    for row in files.table("index.csv", ("stem", "split")):
        if row["split"] != "val":
            continue
        name = files.require(f"masks/{row['stem']}.png", "which index.csv lists")
        mask = cv2.imdecode(np.frombuffer(files.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise SourceError(f"{files.where(name)} is no mask")
        x, y, width, height = cv2.boundingRect((mask != 0).astype(np.uint8))
        yield files.image(f"images/{row['stem']}.jpg"), box_labels([[x, y, x + width, y + height]], [0])


@dataclass(frozen=True, slots=True, eq=False)
class _VideoCounts:
    """Of each frame: annotated persons, those detected, whether it has no annotation, and the boxes on it."""

    annotated: NDArray[np.int64]
    true_positives: NDArray[np.int64]
    empty: NDArray[np.bool_]
    boxes: NDArray[np.int64]


def _video(detector: LabellingTeacher, source: PictureSource, table: Path, every: int) -> _VideoCounts:
    files = open_files(table.parent)
    rows: dict[int, list[tuple[NDArray[np.float64], bool]]] = {}
    for row in files.table(table.name, ("frame", "x", "y", "w", "h", "at_image_edge")):
        x, y, width, height = (float(row[name]) for name in "xywh")
        counted = height > _HIGH_PX and row["at_image_edge"] == "0"
        rows.setdefault(int(row["frame"]) - 1, []).append((np.array([x, y, x + width, y + height]), counted))
    counts = []
    for picture in pictures_of(source, every=every, change=-1.0):
        if picture is None:
            continue
        annotations = rows.get(int(Path(picture.name).stem), [])
        persons = _persons(detector, picture.image)
        boxes = np.array([box for box, counted in annotations if counted]).reshape(-1, 4)
        true_positives = int(_are_detected(boxes, persons).sum())
        counts.append((len(boxes), true_positives, not annotations, int((persons.scores >= _USED).sum())))
    columns = np.array(counts, np.int64).T
    return _VideoCounts(columns[0], columns[1], columns[2].astype(bool), columns[3])


def measure(detector: LabellingTeacher, arguments: argparse.Namespace) -> PersonScores:
    """All that the arguments name."""
    values: dict[str, object] = {}
    if arguments.photos:
        result, _ = _precision(detector, photographs(arguments.photos))
        values |= {
            "photos": len(result.samples),
            "photos_ap": Figure.of(result.value, result.samples),
            "photos_ap50": Figure.of(result.at_50, result.samples_50),
        }
    if arguments.near:
        result, recall = _precision(detector, near_persons(arguments.near))
        values |= {
            "near": len(result.samples),
            "near_ap50": Figure.of(result.at_50, result.samples_50),
            "near_recall": recall,
        }
    if arguments.video:
        text = str(arguments.video) + (f":{arguments.frames}" if arguments.frames else "")
        counts = _video(detector, PictureSource.parse(text), arguments.boxes, arguments.every)
        share, samples = mean_of_ratios(counts.true_positives[:, None], counts.annotated[:, None])
        values |= {
            "boxes": int(counts.annotated.sum()),
            "recall": Figure.of(share, samples),
            "empty": int(counts.empty.sum()),
            "false_boxes": int(counts.boxes[counts.empty].sum()),
        }
    return PersonScores(detector.name, **values)  # type: ignore[arg-type]


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per detector; an EdgevisError becomes one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.person_detection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("detectors", nargs="+", metavar="DETECTOR")
    parser.add_argument("--photos", type=Path, help="COCO photos with index.csv and annotations.json")
    parser.add_argument("--near", type=Path, help="Clothing Co-Parsing")
    parser.add_argument("--video", type=Path, help="of a fixed camera")
    parser.add_argument("--boxes", type=Path, help="its boxes: frame from 1, x, y, w, h, at_image_edge")
    parser.add_argument("--frames", help="FIRST-LAST of the video, from 0 (default: all)")
    parser.add_argument("--every", type=int, default=5, help="each how manieth frame (default: 5)")
    parser.add_argument("--threads", type=int, help="of an engine")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    if not (arguments.photos or arguments.near or arguments.video):
        parser.error("give --photos, --near or --video")
    if bool(arguments.video) != bool(arguments.boxes):
        parser.error("--video and --boxes go together")
    return report(
        lambda: list(_rows(arguments)),
        headers=("detector", "photos: AP", "AP50", "near: AP50", "recall", "video: recall", "on empty frames"),
        cells=_cells,
        as_json=arguments.json,
        title=lambda row: f"{row.photos} photos, {row.near} near persons, {row.boxes} boxes of the video",
    )


def _rows(arguments: argparse.Namespace) -> Iterator[PersonScores]:
    for text in arguments.detectors:
        detector = open_teacher(text, labels=(PERSON,), score=_LOW, threads=arguments.threads)
        try:
            yield measure(detector, arguments)
        finally:
            detector.close()


def _cells(row: PersonScores) -> tuple[str, ...]:
    return (
        row.detector,
        figure_text(row.photos_ap),
        figure_text(row.photos_ap50),
        figure_text(row.near_ap50),
        "" if row.near_recall is None else f"{row.near_recall:.3f}",
        figure_text(row.recall),
        "" if row.false_boxes is None else f"{row.false_boxes} on {row.empty}",
    )


if __name__ == "__main__":
    sys.exit(main())
