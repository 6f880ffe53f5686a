"""COCO's average precision against the reference and by hand, and its interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgevis.data.detection import BoxLabels, box_labels
from edgevis.metrics.average_precision import Detected, InstanceMasks, average_precision, encoded_mask
from edgevis.metrics.interval import half_width
from runtime.detection.average_precision import Objects, precision_curves
from runtime.detection.postprocess import DetectedBoxes
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

pytest.importorskip("pycocotools")


def corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def golden() -> tuple[list[BoxLabels], list[Detected], int]:
    values = np.load(GOLDEN_FOLDER / "coco_ap.npz")
    images, classes = values["images_classes"].tolist()
    truths, detections = [], []
    for image in range(images):
        rows, found = values["gt_image"] == image, values["det_image"] == image
        truths.append(
            box_labels(corners(values["gt_xywh"][rows]), values["gt_class"][rows], ignored=values["gt_crowd"][rows])
        )
        detections.append((corners(values["det_xywh"][found]), values["det_score"][found], values["det_class"][found]))
    return truths, detections, classes


def test_the_reference() -> None:
    values = np.load(GOLDEN_FOLDER / "coco_ap.npz")
    truths, detections, classes = golden()
    result = average_precision(truths, detections, classes=classes)
    assert result.value == pytest.approx(values["stats12"][0], rel=1e-9)
    assert result.at_50 == pytest.approx(values["stats12"][1], rel=1e-9)
    np.testing.assert_allclose(result.by_class.T, values["ap_per_class_iou"], rtol=1e-9)


def one_each(scores: np.ndarray, right: np.ndarray) -> float:
    """AP50 of images with one object and one detection each, by the definition's 101 points."""
    right = right[np.argsort(-scores, kind="stable")]
    recall, precision = np.cumsum(right) / len(right), np.cumsum(right) / np.arange(1, len(right) + 1)
    points = [precision[recall >= level - 1e-12] for level in np.linspace(0, 1, 101)]
    return float(np.mean([part.max(initial=0) for part in points]))


def test_the_interval_is_the_bootstraps() -> None:
    random = np.random.default_rng(0)
    count = 150
    right = random.random(count) < 0.7
    scores = random.random(count) * 0.5 + 0.3 * right
    box = np.array([[10.0, 10, 30, 40]])
    truths = [box_labels(box, [0]) for _ in range(count)]
    detections: list[Detected] = [
        (box + (0 if hit else 100), np.array([score]), np.array([0])) for hit, score in zip(right, scores, strict=True)
    ]
    result = average_precision(truths, detections, classes=1)
    assert result.at_50 == pytest.approx(one_each(scores, right))
    assert np.mean(result.samples_50) == pytest.approx(result.at_50, abs=0.01)
    drawn = [one_each(scores[places], right[places]) for places in random.integers(0, count, (1000, count))]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert half_width(np.array(result.samples_50)) == pytest.approx((high - low) / 2, rel=0.1)


def test_an_image_without_objects_or_detections_changes_nothing() -> None:
    truths, detections, classes = golden()
    nothing: Detected = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    once = average_precision(truths, detections, classes=classes)
    more = average_precision([*truths, box_labels([], [])], [*detections, nothing], classes=classes)
    assert more.value == once.value
    assert more.samples[-1] == pytest.approx(more.value)


def test_by_hand() -> None:
    """One of two objects found at IoU 0.6: right at three thresholds of ten, precision 1 up to a recall of a half."""
    truth = box_labels([[0, 0, 10, 10], [50, 50, 60, 60], [80, 0, 90, 90]], [0, 0, 0], ignored=[False, False, True])
    found = np.array([[0, 0, 10, 6], [82, 10, 88, 20]], float), np.array([0.9, 0.95]), np.array([0, 0])
    result = average_precision([truth], [found], classes=2)
    assert result.at_50 == pytest.approx(51 / 101)
    assert result.value == pytest.approx(0.3 * 51 / 101)
    assert np.isnan(result.by_class[1]).all()
    assert result.samples_50 == pytest.approx((result.at_50,))


def test_what_cannot_be_measured_is_refused() -> None:
    nothing: Detected = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    with pytest.raises(InputError, match="no image has an object"):
        average_precision([box_labels([[0, 0, 9, 9]], [0], ignored=[True])], [nothing], classes=1)
    with pytest.raises(InputError, match="2 images have labels and 1 detections"):
        average_precision([box_labels([[0, 0, 9, 9]], [0])] * 2, [nothing], classes=1)
    assert average_precision([box_labels([[0, 0, 9, 9]], [0])], [nothing], classes=1).value == 0


def test_the_runtimes_own_is_the_area_under_the_same_curves() -> None:
    """What builds and devices measure without pycocotools: it differs by the definition's 101 steps."""
    truths, detections, classes = golden()
    objects = [Objects(labels.boxes, labels.classes, labels.ignored, labels.ignored) for labels in truths]
    ordered = [np.argsort(-scores, kind="stable") for _, scores, _ in detections]
    found = [DetectedBoxes(*(part[order] for part in item)) for item, order in zip(detections, ordered, strict=True)]
    expected = average_precision(truths, detections, classes=classes)
    assert precision_curves(objects, found, classes=classes).value() == pytest.approx(expected.value, abs=0.005)
    at_50 = precision_curves(objects, found, classes=classes, thresholds=(0.5,)).value()
    assert at_50 == pytest.approx(expected.at_50, abs=0.005)


def painted(seed: int, sizes: list[tuple[int, int]]) -> tuple[list[BoxLabels], list[Detected], InstanceMasks]:
    """Ellipses of three classes, one of them a crowd, and detections of them, moved or false."""
    random = np.random.default_rng(seed)
    truths, found, truth_masks, found_masks = [], [], [], []
    for height, width in sizes:
        rows, columns = np.mgrid[:height, :width]
        count = 6
        middles, radii = random.uniform(0.2, 0.8, (count, 2)) * (height, width), random.uniform(4, 12, (count, 2))
        moved = middles + random.normal(0, 2, (count, 2))
        moved[0] = random.uniform(0.2, 0.8, 2) * (height, width)

        def ellipses(centres: np.ndarray, radii: np.ndarray) -> list[np.ndarray]:
            at = zip(centres, radii, strict=True)
            return [((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 <= 1 for (y, x), (a, b) in at]  # noqa: B023

        classes = random.integers(0, 3, count)
        there, guessed = ellipses(middles, radii), ellipses(moved, radii * random.uniform(0.7, 1.3, (count, 1)))
        truths.append(box_labels([box_of(mask) for mask in there], classes, ignored=np.arange(count) == 1))
        found.append((np.array([box_of(mask) for mask in guessed]), random.random(count), classes))
        truth_masks.append([encoded_mask(mask) for mask in there])
        found_masks.append([encoded_mask(mask) for mask in guessed])
    return truths, found, InstanceMasks(truth_masks, found_masks)


def box_of(mask: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_mask_average_precision_is_pycocotools_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of ``COCOeval("segm")`` from a data set and a results file, as its own command would have them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    from pycocotools.mask import area

    truths, detections, masks = painted(0, [(60, 80), (64, 50), (90, 90), (40, 120)])
    data, results = COCO(), []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, (labels, found) in enumerate(zip(truths, detections, strict=True)):
        encoded = masks.truths[image]
        height, width = encoded[0]["size"]
        images.append({"id": image, "height": height, "width": width})
        for box, label, crowd, mask in zip(labels.boxes, labels.classes, labels.ignored, encoded, strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": int(label)})
            annotations[-1] |= {"bbox": box.tolist(), "segmentation": mask, "area": int(area(mask))}
            annotations[-1] |= {"iscrowd": int(crowd)}
        for _, score, label, mask in zip(*found, masks.detections[image], strict=True):
            results.append({"image_id": image, "category_id": int(label), "segmentation": mask, "score": float(score)})
    data.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": n} for n in range(3)],
        "info": 0,
    }
    data.createIndex()
    evaluation = COCOeval(data, data.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    result = average_precision(truths, detections, classes=3, masks=masks)
    assert 0.1 < result.value < 0.9
    assert result.value == pytest.approx(evaluation.stats[0], rel=1e-9)
    assert result.at_50 == pytest.approx(evaluation.stats[1], rel=1e-9)
    assert result.value != pytest.approx(average_precision(truths, detections, classes=3).value, abs=1e-4)


def test_masks_that_are_not_the_labels_are_refused() -> None:
    truths, detections, masks = painted(0, [(60, 80)])
    for wrong in (InstanceMasks(masks.truths, [masks.detections[0][1:]]), InstanceMasks([], masks.detections)):
        with pytest.raises(InputError, match="the numbers of masks are not those of"):
            average_precision(truths, detections, classes=3, masks=wrong)
