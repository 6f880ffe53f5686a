"""Instance segmentation bundles, from pixels to outlines, on each backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from edgevis import (
    Detections,
    EngineError,
    EnrolmentError,
    Frame,
    InputError,
    InstanceSegmentation,
    Pipeline,
    PipelineSettings,
    Predictor,
    SchemaError,
)
from runtime.bundle.spec import Align
from runtime.tasks.instance_segment import agreement, settings_from

from detection_bundles import board, detector, write_detector
from instance_bundles import outliner, write_outliner

RED, GREEN, WIDE_RED = (0, 0, 255), (0, 255, 0), (255, 0, 255)


def test_objects_are_outlined_where_they_are(outlines: Path) -> None:
    image = board((1, 2, RED), (3, 6, GREEN), rows=4, side=16)
    with Predictor(outlines) as predictor:
        assert predictor.labels == ("red", "green")
        found = predictor.predict(image)
        assert isinstance(found, InstanceSegmentation)
        assert (found.polygons.dtype, found.polygons.shape, found.size) == (np.float32, (2, 3, 2), (64, 128))
        assert {item.label: (item.box_xyxy, item.polygon) for item in found} == {
            "red": ((32, 16, 48, 32), ((32, 32), (48, 32), (48, 16))),
            "green": ((96, 48, 112, 64), ((96, 64), (112, 64), (112, 48))),
        }
        for index, (left, top, _, _) in enumerate(found.boxes_xyxy.astype(int).tolist()):
            mask = found.mask(index)
            assert mask[top : top + 16, left : left + 16].sum() == mask.sum()
            assert abs(int(mask.sum()) - 16 * 16 / 2) <= 8  # the diagonal
            assert mask[top + 15, left + 1] > mask[top, left]
        assert set(found.speed_ms) == {"preprocess", "inference", "postprocess"}
        again = predictor.predict([image] * 6)  # more images than an engine is given at once
        for item in again:
            np.testing.assert_array_equal(item.polygons, found.polygons)


@pytest.mark.parametrize("align", get_args(Align))
@pytest.mark.parametrize("size", [(64, 128), (256, 64), (96, 48)])
def test_outlines_are_mapped_back_as_boxes_are(align: Align, size: tuple[int, int], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (*size, 3), np.uint8)
    image[size[0] // 2 :, size[1] // 2 :] = WIDE_RED
    deployment = outliner(align, {"score": 0.4})
    with Predictor(write_outliner(tmp_path / "o.edgevis", deployment=deployment)) as predictor:
        found = predictor.predict(image)
    with Predictor(write_detector(tmp_path / "d.edgevis", deployment=detector(align, {"score": 0.4}))) as predictor:
        boxes = predictor.predict(image).boxes_xyxy
    assert len(boxes) > 1
    np.testing.assert_array_equal(found.boxes_xyxy, boxes)
    np.testing.assert_array_equal(found.polygons, boxes[:, [0, 3, 2, 3, 2, 1]].reshape(-1, 3, 2))
    assert found.polygons.min() >= 0
    assert (found.polygons <= np.array(size[::-1])).all()


def test_the_outlines_are_those_of_the_boxes_that_stay(tmp_path: Path) -> None:
    """Suppression, threshold and limits take the same rows of boxes and of outlines."""
    image = board((1, 1, (255, 0, 200)), (1, 2, WIDE_RED), (5, 5, (0, 204, 0)), (6, 6, (0, 255, 255)))

    def found(**settings: Any) -> InstanceSegmentation:
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}.edgevis"
        with Predictor(write_outliner(place, deployment=outliner(postprocess=settings))) as predictor:
            result = predictor.predict(image)
        assert isinstance(result, InstanceSegmentation)
        corners = result.boxes_xyxy[:, [0, 3, 2, 3, 2, 1]].reshape(-1, 3, 2)
        np.testing.assert_array_equal(result.polygons, corners)
        return result

    overlapping = found(iou=0.5)
    assert len(overlapping) == 5
    first, second = overlapping[overlapping.class_ids == 0][[0, 2]].masks
    assert (first & second).any()  # two red objects, each with its own pixels
    assert len(found(iou=0.3)) == 4
    assert len(found(score=0.9)) == 3
    assert len(found(max_detections=2)) == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (64, 64)])
def test_nothing_is_outlined_in_an_empty_image(outlines: Path, size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    with Predictor(outlines) as predictor:
        found = predictor.predict(image)
    assert (len(found), found.polygons.shape, found.masks.shape) == (0, (0, 3, 2), (0, *size))
    assert found.to_dict()["detections"] == []
    assert found.cells() == ("nothing", "–")
    np.testing.assert_array_equal(found.plot(image), image)


def test_outlines_that_overflow_end_at_the_edge_of_the_image(tmp_path: Path) -> None:
    with Predictor(write_outliner(tmp_path / "overflow.edgevis", growth="Exp")) as predictor:
        found = predictor.predict(board((1, 1, WIDE_RED)))
    assert found.polygons.tolist() == [[[0, 64], [64, 64], [64, 0]]]
    assert found.masks.sum() > 64 * 64 / 2 - 64


def test_an_outline_of_nan_is_the_engines_fault(tmp_path: Path) -> None:
    with Predictor(write_outliner(tmp_path / "broken.edgevis", outline="Sqrt")) as predictor:
        assert len(predictor.predict(board((0, 0, (255, 0, 0))))) == 0  # of no score: nobody looks at the outline
        with pytest.raises(EngineError, match="graph 'outline': the engine's output 'polygons' is NaN"):
            predictor.predict(board((0, 0, WIDE_RED)))
    boxes = write_outliner(tmp_path / "boxes.edgevis", growth="Sqrt")
    with Predictor(boxes) as predictor, pytest.raises(EngineError, match="'outline': the engine's output 'boxes' is"):
        predictor.predict(board((1, 1, WIDE_RED)))


def test_the_threshold_can_be_set_and_nothing_be_enrolled(outlines: Path) -> None:
    image = board((1, 1, (0, 0, 100)), (5, 5, (0, 204, 0)))
    with Predictor(outlines) as predictor:
        assert predictor.predict(image).labels == ("green",)
        predictor.threshold = 0.3
        assert predictor.predict(image).labels == ("green", "red")
        with pytest.raises(EnrolmentError, match="the classes that it was trained for"):
            predictor.enroll("blue", image)
        with pytest.raises(InputError, match="nothing to embed"):
            predictor.embed(image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "labels is None"),
        ({"labels": ["a"], "score": float("nan")}, "score is nan"),
        ({"labels": ["a"], "iou": -1}, "iou is -1"),
        ({"labels": ["a"], "max_detections": "many"}, "max_detections is 'many'"),
    ],
)
def test_settings_are_the_detectors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        settings_from(settings)


def test_a_graph_that_gives_no_outlines_is_refused(tmp_path: Path) -> None:
    message = r"graph 'outline' maps .*'boxes', float32 \(N, A, 4\), and 'polygons', float32 \(N, A, V, 2\), V from 3"
    with pytest.raises(SchemaError, match=message):
        Predictor(write_outliner(tmp_path / "a.edgevis", deployment=outliner(vertices=2)))
    with pytest.raises(SchemaError, match=message):
        Predictor(write_outliner(tmp_path / "b.edgevis", deployment=outliner(postprocess={"labels": ["red"]})))


def test_it_detects_in_a_pipeline(outlines: Path) -> None:
    image = board((1, 2, RED), (3, 6, GREEN), rows=4, side=16)
    with Pipeline(outlines, identify=False, settings=PipelineSettings(detection_score=0.5)) as pipeline:
        (objects,) = pipeline.process([Frame(image, 0, 0, 0.0, 1000.0)])
    assert sorted(item.detection_label for item in objects) == ["green", "red"]


def test_agreement_counts_boxes_and_masks() -> None:
    random = np.random.default_rng(0)
    low = random.uniform(0, 200, (8, 12, 2))
    boxes = np.concatenate([low, low + random.uniform(20, 50, low.shape)], axis=2).astype(np.float32)
    polygons = boxes[..., [0, 1, 2, 1, 2, 3, 0, 3]].reshape(8, 12, 4, 2)
    scores = (random.random((8, 12, 2)) ** 4).astype(np.float32)
    reference = {"outline/scores": scores, "outline/boxes": boxes, "outline/polygons": polygons}

    def value(**changed: Any) -> float:
        decisions = agreement(reference, {**reference, **{f"outline/{name}": item for name, item in changed.items()}})
        assert decisions is not None
        assert decisions.count == (scores >= 0.3).sum() > 10
        assert decisions.decisive
        return decisions.agreement

    assert value() == 1.0
    assert value(polygons=polygons + 0.5) > 0.99
    triangles = polygons.copy()
    triangles[:, :, 0] = triangles[:, :, 1]  # half of each mask: an IoU of 0.5, under a box that is right
    assert value(polygons=triangles) < 0.6
    assert value(polygons=np.full_like(polygons, np.nan)) == 0.0
    assert value(boxes=boxes + 100) < 0.2
    assert value(scores=scores[..., ::-1]) < 0.5
    flat = {**reference, "outline/polygons": np.zeros_like(polygons)}  # nothing is inside: the boxes decide
    decisions = agreement(flat, flat)
    assert decisions is not None
    assert decisions.agreement == 1.0
    nothing = {**reference, "outline/scores": np.zeros_like(scores)}
    decisions = agreement(nothing, reference)
    assert decisions is not None
    assert (decisions.agreement, decisions.count) == (1.0, 0)
    assert agreement(reference, {"outline/scores": scores, "outline/boxes": boxes}) is None


def test_it_is_a_kind_of_detections(outlines: Path) -> None:
    with Predictor(outlines) as predictor:
        assert isinstance(predictor.predict(board((1, 2, RED))), Detections)
