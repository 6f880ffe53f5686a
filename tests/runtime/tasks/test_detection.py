"""Detection bundles, from pixels to boxes, on each backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from edgevis import Detections, EngineError, EnrolmentError, InputError, Predictor, SchemaError, UnknownLabelError
from runtime.bundle.spec import Align
from runtime.tasks.detect import DetectionSettings, settings_from

from bundles import Array
from detection_bundles import board, cell_boxes, detector, with_settings, write_detector

RED, GREEN, BOTH = (0, 0, 255), (0, 255, 0), (0, 255, 255)


def test_objects_are_found_where_they_are(cells: Path) -> None:
    image = board((1, 2, RED), (3, 6, GREEN), rows=4, side=16)
    with Predictor(cells) as predictor:
        predictor.warmup(batch_sizes=(1, 2))
        assert predictor.labels == ("red", "green")
        found = predictor.predict(image)
        assert isinstance(found, Detections)
        assert found.boxes_xyxy.dtype == found.scores.dtype == np.float32
        assert found.class_ids.dtype == np.int64
        assert set(found.speed_ms) == {"preprocess", "inference", "postprocess"}
        boxes = {detection.label: detection.box_xyxy for detection in found}
        assert boxes == {"red": (32, 16, 48, 32), "green": (96, 48, 112, 64)}
        assert found.class_ids.tolist() == [0, 1]
        # More images than an engine is given at once.
        again = predictor.predict([image] * 6)
        assert len(again) == 6
        for item in again:
            np.testing.assert_array_equal(item.boxes_xyxy, found.boxes_xyxy)


@pytest.mark.parametrize("align", get_args(Align))
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (64, 128), (256, 64), (96, 48)])
def test_letterboxes_are_mapped_back_exactly(align: Align, size: tuple[int, int], tmp_path: Path) -> None:
    """One square of the grid, in an image of other proportions and in both places in the input."""
    ratio = max(size) // 64 if max(size) % 64 == 0 else max(size) / 64
    padded = [(64 - side / ratio) / 2 if align == "center" else 0 for side in size]
    inside = cell_boxes() - np.array([padded[1], padded[0]] * 2)
    image = np.zeros((*size, 3), np.uint8)
    # The first whole cell of the input that lies inside the image.
    edge = np.array([size[1], size[0]] * 2) / ratio
    box = inside[((inside >= 0) & (inside <= edge)).all(axis=1)][0] * ratio
    left, top, right, bottom = box.round().astype(int)
    image[top:bottom, left:right] = RED
    with Predictor(write_detector(tmp_path / "cells.edgevis", deployment=detector(align))) as predictor:
        found = predictor.predict(image)
    assert found.boxes_xyxy.tolist() == [[left, top, right, bottom]]


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (64, 64), (1080, 1920)])
def test_nothing_is_found_in_an_empty_image(cells: Path, size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    with Predictor(cells) as predictor:
        found = predictor.predict(image)
        assert len(found) == 0
        assert (found.boxes_xyxy.shape, found.scores.shape, found.class_ids.shape) == ((0, 4), (0,), (0,))
        assert found.labels == ()
        assert found.to_dict()["detections"] == []
        assert found.crops(image) == []
        np.testing.assert_array_equal(found.plot(image), image)
        assert predictor.predict([image, image])[1].cells() == ("nothing", "–")


def test_an_object_of_one_pixel_image(cells: Path) -> None:
    with Predictor(cells) as predictor:
        found = predictor.predict(np.full((1, 1, 3), RED, np.uint8))
    assert found.labels == ("red",) * len(found)
    assert len(found) > 1  # cells side by side do not overlap
    assert 0 <= found.boxes_xyxy.min() <= found.boxes_xyxy.max() <= 1


def test_settings_decide(cells: Path, tmp_path: Path) -> None:
    image = board((1, 1, (0, 0, 200)), (1, 2, (0, 0, 255)), (5, 5, (0, 204, 0)), (6, 6, BOTH))
    image[8:16, 8:24, 0] = 255  # the two red cells' boxes grow by four pixels on each side and overlap: IoU 1/3

    def labels(**settings: Any) -> list[tuple[str, float]]:
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}.edgevis"
        with Predictor(write_detector(place, deployment=with_settings(detector(), **settings))) as predictor:
            return [(item.label, round(item.score, 2)) for item in predictor.predict(image)]

    red, both = ("red", 1.0), ("green", 1.0)
    every = [red, red, both, ("green", 0.8), ("red", 0.78)]
    assert labels(iou=0.5) == every
    assert labels(iou=0.3) == every[:4]
    assert labels(iou=0.5, score=0.9) == every[:3]
    assert labels(iou=0.5, max_detections=2) == every[:2]
    assert labels(iou=0.5, candidates=4) == every[:4]
    assert labels(score=1.0, iou=1.0) == every[:3]


def test_the_threshold_can_be_set(cells: Path) -> None:
    image = board((1, 1, (0, 0, 100)), (5, 5, (0, 204, 0)))
    with Predictor(cells) as predictor:
        assert predictor.threshold == predictor.info.threshold == 0.5
        assert predictor.predict(image).labels == ("green",)
        predictor.threshold = 0.3
        assert predictor.predict(image).labels == ("green", "red")
        predictor.threshold = None
        assert predictor.predict(image).labels == ("green",)
        for wrong in (-0.1, float("nan"), "0.5"):
            with pytest.raises(InputError, match=r"threshold is .*0\.\.1, or None for the bundle's"):
                predictor.threshold = wrong
        with pytest.raises(InputError, match="has no scores between labels"):
            predictor.false_accept_rate = 0.1


def test_nothing_can_be_enrolled_or_embedded(cells: Path) -> None:
    with Predictor(cells) as predictor:
        for refused in (
            lambda: predictor.enroll("blue", board()),
            lambda: predictor.forget("red"),
            lambda: predictor.save(cells.parent / "x.enrolment"),
        ):
            with pytest.raises(EnrolmentError, match="the classes that it was trained for"):
                refused()
        with pytest.raises(UnknownLabelError, match="known: red, green"):
            predictor.forget("blue")
        with pytest.raises(InputError, match="nothing to embed"):
            predictor.embed(board())


def test_boxes_that_overflow_end_at_the_edge_of_the_image(tmp_path: Path) -> None:
    with Predictor(write_detector(tmp_path / "overflow.edgevis", growth="Exp")) as predictor:
        found = predictor.predict(board((1, 1, (255, 0, 255)), (4, 4, GREEN)))
        assert found.boxes_xyxy.tolist() == [[0, 0, 64, 64], [28, 28, 44, 44]]
        assert len(predictor.predict(board((1, 1, (255, 0, 0))))) == 0  # of no score: nobody looks at the box


def test_a_box_of_nan_is_the_engines_fault(tmp_path: Path) -> None:
    with Predictor(write_detector(tmp_path / "broken.edgevis", growth="Sqrt")) as predictor:
        assert len(predictor.predict(board((1, 1, (255, 0, 0))))) == 0
        with pytest.raises(EngineError, match="'boxes' is NaN where its score is above the threshold"):
            predictor.predict(board((1, 1, (255, 0, 255))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": []}, "labels is"),
        ({"labels": ["a", "a"]}, "all different"),
        ({"labels": "person"}, "labels is"),
        ({"labels": ["a"], "score": 1.5}, "score is 1.5; allowed: a number from 0 to 1"),
        ({"labels": ["a"], "iou": True}, "iou is True"),
        ({"labels": ["a"], "max_detections": 0}, "max_detections is 0; allowed: a whole number from 1"),
        ({"labels": ["a"], "candidates": 2.5}, "candidates is 2.5"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        settings_from(settings)


def test_default_settings() -> None:
    assert settings_from({"labels": ["person"]}) == DetectionSettings(("person",), 0.3, 0.5, 100, 1000)


def test_a_graph_that_is_no_detector_is_refused(tmp_path: Path) -> None:
    wrong = with_settings(detector(), labels=["red", "green", "blue"])
    with pytest.raises(SchemaError, match=r"'scores', float32 \(N, A, 3\) for its 3 labels"):
        Predictor(write_detector(tmp_path / "cells.edgevis", deployment=wrong))


def test_a_frame_seen_through_views(cells: Path) -> None:
    image = board((1, 2, RED), (6, 1, GREEN))
    views: dict[str, Array] = {
        "mirrored": image[:, ::-1],
        "transposed": image.transpose(1, 0, 2),
        "Fortran order": np.asfortranarray(image),
    }
    with Predictor(cells) as predictor:
        for view in views.values():
            found = predictor.predict(view)
            expected = predictor.predict(np.ascontiguousarray(view))
            np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
            assert [crop.shape for crop in found.crops(view)] == [(8, 8, 3), (8, 8, 3)]
            assert found.plot(view).shape == view.shape
