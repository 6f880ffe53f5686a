"""What is written for other tools is opened by those tools."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgevis import Detections, InputError, Segmentation, SourceError, TrackedObject
from edgevis.cli import main
from runtime.interop.coco import CocoIds, coco_dataset, coco_results, read_coco_ids
from runtime.interop.mot import mot_lines

from detection_bundles import board, write_detector

FOUND = Detections(
    np.array([[10, 20, 50, 90], [60.25, 30.5, 99.5, 80]], np.float32),
    np.array([0.875, 0.75], np.float32),
    ("person", "dog"),
    np.array([0, 16]),
)
RED, GREEN = (0, 0, 255), (0, 255, 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures with objects, one without, one that is damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), board((1, 2, RED), (3, 6, GREEN), rows=4, side=16))
    cv2.imwrite(str(folder / "b.png"), board())
    cv2.imwrite(str(folder / "c.png"), board((7, 7, GREEN)))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_detector(tmp_path / "cells.edgevis")


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == status
    return capsys.readouterr().out


def test_supervision_takes_detections() -> None:
    supervision = pytest.importorskip("supervision")
    converted = FOUND.to_supervision()
    assert isinstance(converted, supervision.Detections)
    np.testing.assert_array_equal(converted.xyxy, FOUND.boxes_xyxy)
    assert converted.confidence.tolist() == [0.875, 0.75]
    assert converted.class_id.tolist() == [0, 16]
    assert converted["class_name"].tolist() == ["person", "dog"]
    assert converted[converted["class_name"] == "dog"].xyxy.tolist() == [[60.25, 30.5, 99.5, 80]]
    drawn = supervision.BoxAnnotator().annotate(np.zeros((100, 120, 3), np.uint8), converted)
    assert drawn[20, 10].any()
    assert len(FOUND[:0].to_supervision()) == 0
    assert supervision.Detections.merge([converted, FOUND[:1].to_supervision()]).class_id.tolist() == [0, 16, 0]


def test_supervision_takes_segmentations() -> None:
    supervision = pytest.importorskip("supervision")
    label_map = np.full((8, 12), -1, np.int16)
    label_map[2:5, 3:9] = 1
    result = Segmentation(label_map >= 0, np.full((8, 12), 0.75, np.float32), ("bright", "dark"), label_map)
    converted = result.to_supervision()
    assert isinstance(converted, supervision.Detections)
    assert converted.xyxy.tolist() == [[3, 2, 9, 5]]
    np.testing.assert_array_equal(converted.mask, [label_map == 1])
    assert converted["class_name"].tolist() == ["dark"]
    assert (converted.confidence.tolist(), converted.class_id.tolist(), converted.area.tolist()) == ([0.75], [1], [18])
    empty = Segmentation(np.zeros((8, 12), bool), result.probability, ("bright",), np.full((8, 12), -1, np.int16))
    assert len(empty.to_supervision()) == 0


def test_coco_results_are_evaluated(photos: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: predict, load beside the annotations, evaluate; a perfect detector has an AP of 1."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    boxes = {"a.png": [(7, [32, 16, 16, 16]), (9, [96, 48, 16, 16])], "b.png": [], "c.png": [(9, [56, 56, 8, 8])]}
    annotations: list[dict[str, Any]] = []
    for image_id, (_, items) in enumerate(boxes.items(), start=40):
        for category, box in items:
            number = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category}
            annotations.append({**number, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    truth = {
        "images": [
            {"id": image_id, "file_name": f"val/{name}", "height": 64, "width": 128}
            for image_id, name in enumerate(boxes, start=40)
        ],
        "annotations": annotations,
        "categories": [{"id": 9, "name": "green"}, {"id": 7, "name": "red"}],
    }
    file, results = photos.parent / "truth.json", photos.parent / "results.json"
    file.write_text(json.dumps(truth))
    results.write_text(
        printed(capsys, "predict", bundle, photos, "--format", "coco", "--annotations", file, "--threshold", 0.3)
    )
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO(str(file))
        evaluation = cocoeval.COCOeval(known, known.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_a_coco_data_set_is_read(photos: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    file = photos.parent / "found.json"
    file.write_text(printed(capsys, "predict", bundle, photos, "--format", "coco"))
    with contextlib.redirect_stdout(io.StringIO()):
        data = coco.COCO(str(file))
    assert [item["name"] for item in data.loadCats(data.getCatIds())] == ["red", "green"]
    first = data.loadImgs(1)[0]
    assert (Path(first["file_name"]).name, first["height"], first["width"]) == ("a.png", 64, 128)
    assert data.loadAnns(data.getAnnIds(imgIds=1, catIds=1))[0]["bbox"] == [32, 16, 16, 16]
    assert data.getAnnIds(imgIds=2) == []


def test_csv_is_read(photos: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "predict", bundle, photos, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [Path(row["image"]).name for row in rows] == ["a.png", "a.png", "c.png"]
    assert {row["label"]: (float(row["x0"]), float(row["y1"])) for row in rows[:2]} == {
        "red": (32.0, 32.0),
        "green": (96.0, 64.0),
    }
    table = pytest.importorskip("pandas").read_csv(io.StringIO(text))
    assert table.groupby("label").size().to_dict() == {"green": 2, "red": 1}
    assert table["score"].dtype == float


# motmetrics 1.4.0 adds a tuple to a frame, which pandas 3 warns of.
@pytest.mark.filterwarnings("ignore:Operation with tuple is deprecated")
def test_mot_text_is_read(photos: Path, bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    motmetrics = pytest.importorskip("motmetrics")
    box = np.array((10.0, 20.0, 50.0, 90.0), np.float32)
    objects = [TrackedObject(7, box, 0.0, None, "unknown-1", (), "person", 0.9, True)]
    file = tmp_path / "tracks.txt"
    lines = [line for frame in range(3) for line in mot_lines(frame, objects)]
    assert lines[0] == "1,7,11.00,21.00,40.00,70.00,0.9000,-1,-1,-1"
    file.write_text("\n".join(lines) + "\n")
    table = motmetrics.io.loadtxt(str(file), fmt="mot15-2D")  # it counts pixels from 0
    assert table.index.tolist() == [(1, 7), (2, 7), (3, 7)]
    assert table[["X", "Y", "Width", "Height", "Confidence"]].to_numpy()[0].tolist() == [10, 20, 40, 70, 0.9]
    file.write_text(printed(capsys, "predict", bundle, photos, "--format", "mot"))
    table = motmetrics.io.loadtxt(str(file), fmt="mot15-2D")
    assert sorted(table.index) == [(1, -1), (1, -1), (3, -1)]


def test_pictures_without_a_result_are_left_out(photos: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes()[:90])
    for name in ("csv", "mot", "coco"):
        text = printed(capsys, "predict", bundle, photos, "--format", name, status=1)
        assert ("a.png" in text, "b.png" in text) == (name != "mot", False)
        if name == "mot":  # a frame keeps its number
            assert [line.partition(",")[0] for line in text.splitlines()] == ["1", "1", "3"]


def test_ids_of_an_annotation_file() -> None:
    ids = CocoIds({"val/1.jpg": 3, "train/1.jpg": 4, "2.jpg": 5}, {"person": 1}, "truth.json")
    assert (ids.image("/data/val/1.jpg"), ids.image(Path("train/1.jpg")), ids.image("x/2.jpg")) == (3, 4, 5)
    for name, message in (("1.jpg", "names 2 images 1.jpg"), ("9.jpg", "names no image 9.jpg")):
        with pytest.raises(InputError, match=message):
            ids.image(name)
    assert coco_results("2.jpg", FOUND[:1], ids) == [
        {"image_id": 5, "category_id": 1, "bbox": [10, 20, 40, 70], "score": 0.875}
    ]
    with pytest.raises(InputError, match=r"truth\.json has no category 'dog'; it has person"):
        coco_results("2.jpg", FOUND, ids)
    assert coco_results("2.jpg", FOUND[:0], ids) == []
    assert coco_dataset([], ["person"])["categories"] == [{"id": 1, "name": "person"}]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"images": [{"id": 1}], "categories": []}', '{"images": 3}', "\0"]
)
def test_a_file_that_holds_no_annotations_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "truth.json"
    with pytest.raises(SourceError, match="cannot be read as COCO annotations"):
        read_coco_ids(file)
    file.write_text(content)
    with pytest.raises(SourceError, match="cannot be read as COCO annotations"):
        read_coco_ids(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--annotations", "x.json"], "--annotations are for --format coco"),
        (["--format", "csv", "--json"], "--json is --format json, and --format is csv"),
        (["--json", "--jsonl"], "give one of them"),
        (["--masks", "there"], "--masks is for segmentation"),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: list[str], message: str, photos: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(bundle), str(photos), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_formats_of_detections_are_refused_for_other_tasks(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bundles import write_tiny_bundle

    other = write_tiny_bundle(photos.parent / "reid.edgevis")
    assert main(["predict", str(other), str(photos), "--format", "csv"]) == 1
    assert "--format csv is for detections; this model's task is reid" in capsys.readouterr().err
