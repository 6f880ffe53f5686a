"""From scores and boxes of a graph to the detections of an image."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from runtime.bundle.spec import Preprocess
from runtime.detection.average_precision import Objects
from runtime.detection.matching import matched_pairs
from runtime.detection.postprocess import DetectedBoxes, DetectionSettings, detected_boxes
from runtime.images.preprocess import Preprocessor
from runtime.parity.detections import OWN, ImagePlace, detection_agreement, labelled_agreement

from bundles import Array

PERSON = DetectionSettings(("person",), score=0.5)
INF = np.inf


def run(scores: list[float], boxes: list[list[float]], size: tuple[int, int] = (50, 100)) -> DetectedBoxes:
    geometry = Preprocessor(Preprocess(100, 100, fit="letterbox", align="top-left")).geometry(size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return detected_boxes(
            np.array(scores, np.float32)[:, None], np.array(boxes, np.float32), PERSON, geometry=geometry, size=size
        )


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-INF, -INF, INF, INF], [0, 0, 100, 50]),  # the exponential of an untrained width and height
        ([-3e38, 10, 3e38, 20], [0, 10, 100, 20]),
        ([-20, -20, 30, 40], [0, 0, 30, 40]),
        ([90, 40, 120, 70], [90, 40, 100, 50]),
        ([0, 0, 100, 50], [0, 0, 100, 50]),
    ],
)
def test_boxes_are_clipped_to_the_image(box: list[float], expected: list[float]) -> None:
    found = run([0.9], [box])
    assert found.boxes.tolist() == [expected]
    assert (found.boxes.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int64)


@pytest.mark.parametrize(
    "box",
    [
        [0, 60, 100, 90],  # in the padding below the image
        [10, 10, 10, 30],
        [10, 10, 30, 10],
        [30, 30, 10, 10],
        [-INF, -INF, -INF, INF],
        [-50, 0, 0, 50],
    ],
)
def test_boxes_without_an_area_in_the_image_are_dropped_before_suppression(box: list[float]) -> None:
    assert run([0.9], [box]).boxes.tolist() == []
    assert run([0.9, 0.8], [box, [10, 10, 30, 30]]).scores.tolist() == [np.float32(0.8)]


def test_what_has_no_score_is_not_looked_at() -> None:
    found = run([0.1, 0.9], [[np.nan] * 4, [1, 2, 3, 4]])
    assert found.boxes.tolist() == [[1, 2, 3, 4]]
    assert np.isnan(run([0.9], [[np.nan] * 4]).boxes).all()  # for the caller to refuse


def test_a_box_may_belong_to_two_classes_and_limits_hold() -> None:
    scores = np.array([[0.9, 0.8], [0.7, 0.85], [0.6, 0.1]], np.float32)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]], np.float32)
    settings = DetectionSettings(("a", "b"), score=0.5, iou=0.5)
    found = detected_boxes(scores, boxes, settings)
    assert found.class_ids.tolist() == [0, 1, 0]
    assert found.scores.tolist() == [np.float32(value) for value in (0.9, 0.85, 0.6)]
    few = DetectionSettings(("a", "b"), score=0.5, iou=0.5, max_detections=2)
    assert detected_boxes(scores, boxes, few).scores.tolist() == found.scores[:2].tolist()
    cut = DetectionSettings(("a", "b"), score=0.5, iou=0.5, candidates=3)
    assert detected_boxes(scores, boxes, cut).scores.tolist() == found.scores[:2].tolist()


def outputs(random: np.random.Generator, images: int = 6) -> tuple[Array, Array]:
    """Scores (N, 40, 3) and boxes (N, 40, 4) with some detections in each image."""
    start = random.uniform(0, 300, (images, 40, 2))
    boxes = np.concatenate([start, start + random.uniform(20, 90, (images, 40, 2))], axis=2)
    return random.beta(0.3, 1.0, (images, 40, 3)).astype(np.float32), boxes.astype(np.float32)


def test_agreement_is_the_average_precision_of_the_models_own_detections() -> None:
    scores, boxes = outputs(np.random.default_rng(1))
    same = detection_agreement((scores, boxes), (scores, boxes))
    assert (same.metric, same.agreement, same.decisive) == (OWN, 1.0, True)
    assert same.count > 100
    assert same.chance < 0.1
    assert same.measurable
    moved = boxes.copy()
    moved[0, :, 0] += 200  # every box of one of six images
    other = detection_agreement((scores, boxes), (scores, moved))
    assert 0.6 < other.agreement < 0.95
    swapped = detection_agreement((scores, boxes), (scores[..., ::-1].copy(), boxes))
    assert swapped.agreement < 0.7
    assert detection_agreement((scores, boxes), (np.zeros_like(scores), boxes)).agreement == 0.0
    assert detection_agreement((scores, boxes), (scores, np.full_like(boxes, np.nan))).agreement == 0.0


def test_scores_that_keep_their_order_and_boxes_that_keep_their_place_agree() -> None:
    """A threshold that a score moves across is the user's; a false detection ahead of a right one is the engine's."""
    boxes = np.array([[[0, 0, 40, 40], [100, 0, 140, 40], [200, 0, 240, 40]]], np.float32)
    scores = np.array([[[0.31], [0.9], [0.2]]], np.float32)
    for changed, agreement in (
        ([0.31, 0.9, 0.2], 1.0),
        ([0.05, 0.5, 0.01], 1.0),
        ([0.31, 0.9, 0.95], 1.0),  # the model itself was not sure that it is none
        ([0.0, 0.9, 0.2], 0.5),
    ):
        other = np.array(changed, np.float32)[None, :, None]
        assert detection_agreement((scores, boxes), (other, boxes)).agreement == pytest.approx(agreement)
    false = np.concatenate([scores, np.array([[[0.6]]], np.float32)], axis=1)
    four = np.concatenate([boxes, np.array([[[300, 0, 340, 40]]], np.float32)], axis=1)
    assert detection_agreement(
        (np.where(false == np.float32(0.6), np.float32(0), false), four), (false, four)
    ).agreement == (pytest.approx(5 / 6))


def test_a_loss_of_average_precision_that_annotations_show_counts() -> None:
    """Half of the objects the model finds below its threshold, and the engine not at all."""
    side, images = 100, 30
    boxes = np.tile(np.array([[0, 0, 40, 40], [50, 50, 90, 90]], np.float32), (images, 1, 1))
    scores = np.tile(np.array([[0.9], [0.05]], np.float32), (images, 1, 1))
    worse = scores.copy()
    worse[:, 1] = 0.0
    geometry = Preprocessor(Preprocess(side, side)).geometry((2 * side, 2 * side))
    places = [ImagePlace(geometry, (2 * side, 2 * side))] * images
    whole = np.zeros(2, np.int64), np.zeros(2, np.bool_), np.zeros(2, np.bool_)
    objects = [Objects(2 * boxes[0], *whole)] * images
    assert detection_agreement((scores, boxes), (worse, boxes)).agreement == 1.0
    shown = labelled_agreement(objects, places, (scores, boxes), (worse, boxes), PERSON)
    assert shown.agreement == pytest.approx(0.5)
    assert shown.interval == pytest.approx((0.5, 0.5))
    same = labelled_agreement(objects, places, (scores, boxes), (scores, boxes), PERSON)
    assert (same.agreement, same.interval) == (1.0, (1.0, 1.0))
    none = [Objects(*(part[:0] for part in objects[0]))] * images
    assert labelled_agreement(none, places, (scores, boxes), (worse, boxes), PERSON).interval is None


def test_without_detections_an_agreement_proves_nothing() -> None:
    _, boxes = outputs(np.random.default_rng(1))
    nothing = (np.zeros((6, 40, 3), np.float32), boxes)
    for images in (6, 1):
        decisions = detection_agreement(*[tuple(part[:images] for part in nothing)] * 2)
        assert (decisions.agreement, decisions.count, decisions.measurable) == (1.0, 0, False)


def test_matching_is_greedy_within_a_class() -> None:
    first = DetectedBoxes(
        np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10]], np.float32),
        np.array([0.9, 0.8, 0.7], np.float32),
        np.array([0, 0, 1]),
    )
    second = DetectedBoxes(first.boxes[[1, 0, 2]], first.scores, np.array([0, 0, 0]))
    pairs = matched_pairs(first, second, iou=0.8)
    assert [part.tolist() for part in pairs] == [[0, 1], [1, 0]]
    nothing = DetectedBoxes(first.boxes[:0], first.scores[:0], first.class_ids[:0])
    assert [part.tolist() for part in matched_pairs(first, nothing, iou=0.5)] == [[], []]
    assert [part.tolist() for part in matched_pairs(nothing, second, iou=0.5)] == [[], []]
