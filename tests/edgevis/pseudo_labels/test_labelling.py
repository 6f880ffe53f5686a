"""Labelling real files with a real detector: a graph that finds the white blob of a picture."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgevis.pseudo_labels import PictureSource, TeacherEnsemble, TeacherViews, open_teacher
from edgevis.pseudo_labels.__main__ import main
from edgevis.pseudo_labels.pictures import pictures_of
from edgevis.pseudo_labels.teachers import windows_of
from runtime.errors import EngineError, InputError, SourceError
from runtime.images.decode import Image

from blob_detector import SCORE, write_blob_detector
from bundles import Tiny, write_tiny_bundle
from detection_bundles import board, write_detector
from shared_data import shared_data

pytest.importorskip("onnx")


def blob(box: tuple[int, int, int, int] | None = None, size: tuple[int, int] = (128, 96)) -> Image:
    image = np.full((size[1], size[0], 3), 40, np.uint8)
    if box is not None:
        x0, y0, x1, y1 = box
        image[y0:y1, x0:x1] = 255
    return image


def png(image: Image) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return write_blob_detector(tmp_path / "blob.onnx")


def label(tmp_path: Path, *words: object) -> int:
    return main([*map(str, words), "--output", str(tmp_path / "labels"), "--teacher", str(tmp_path / "blob.onnx")])


def written(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "labels" / "annotations.json").read_text())


def write_video(path: Path, frames: list[Image]) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, frames[0].shape[1::-1])
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def test_folder_zip_file_and_video_become_one_data_set(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(blob((20, 30, 60, 90))))
    (folder / "empty.png").write_bytes(png(blob()))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("images/one.png", png(blob((2, 3, 40, 60))))
        archive.writestr("images/two.png", png(blob((8, 3, 40, 60))))
        archive.writestr("index.csv", "stem,split\none,train\ntwo,val\n")
    (tmp_path / "alone.png").write_bytes(png(blob((60, 30, 100, 90))))
    frames = [blob((10 + 8 * (step // 4), 20, 40 + 8 * (step // 4), 80)) for step in range(12)]
    write_video(tmp_path / "walk.avi", frames)
    sources = (folder, f"{tmp_path / 'set.zip'}:split=train", tmp_path / "alone.png", f"{tmp_path / 'walk.avi'}:2-11")
    assert label(tmp_path, *sources, "--every", "2") == 0
    result = written(tmp_path)
    names = [image["file_name"] for image in result["images"]]
    assert names[:3] == ["photos/a.png", "photos/empty.png", "set/images/one.png"]
    assert names[3].startswith("alone-")
    assert names[4:] == ["walk/000002.jpg", "walk/000004.jpg", "walk/000008.jpg"]  # the others show no change
    assert result["categories"] == [{"id": 1, "name": "person"}]
    boxes = {item["image_id"]: item for item in result["annotations"]}
    assert sorted(boxes) == [1, 3, 4, 5, 6, 7]  # none in the empty picture
    np.testing.assert_allclose(boxes[1]["bbox"], [20, 30, 40, 60], atol=2)
    assert boxes[1]["score"] == pytest.approx(SCORE, abs=1e-3)
    assert boxes[1]["votes"] == 1
    assert boxes[1]["iscrowd"] == 0
    assert result["info"]["teachers"][0].startswith("blob.onnx ")
    assert (tmp_path / "labels/images/photos/a.png").read_bytes() == (folder / "a.png").read_bytes()
    frame = cv2.imread(str(tmp_path / "labels/images/walk/000004.jpg"))
    assert np.abs(frame.astype(int) - frames[4]).mean() < 3


def test_box_below_the_score_is_ignored_and_not_background(tmp_path: Path, teacher: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(blob((20, 30, 60, 90))))
    assert label(tmp_path, tmp_path / "a.png", "--score", "0.95", "--ignore", "0.5") == 0
    assert [item["iscrowd"] for item in written(tmp_path)["annotations"]] == [1]


def test_interrupted_run_goes_on_and_ends_as_an_uninterrupted_one(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png(blob((10 + number, 10, 60, 70))))
    broken = folder / "3.png"
    whole, cut = broken.read_bytes(), broken.read_bytes()[:60]
    broken.write_bytes(cut)
    assert label(tmp_path, folder) == 1  # stops at the damaged picture
    journal = tmp_path / "labels" / "labels.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 3
    assert not (tmp_path / "labels" / "annotations.json").exists()
    journal.write_bytes(journal.read_bytes() + b'{"source": "phot')  # and was killed while it wrote
    broken.write_bytes(whole)
    first = tmp_path / "labels/images/photos/0.png"
    changed = first.stat().st_mtime_ns
    assert label(tmp_path, folder) == 1  # never by chance
    assert label(tmp_path, folder, "--resume") == 0
    assert first.stat().st_mtime_ns == changed
    resumed = written(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "former")
    assert label(tmp_path, folder) == 0
    assert written(tmp_path) == resumed


def test_other_request_does_not_go_on(tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(png(blob((20, 30, 60, 90))))
    assert label(tmp_path, tmp_path / "a.png") == 0
    assert label(tmp_path, tmp_path / "a.png", "--resume", "--score", "0.6") == 1
    assert "score was 0.5, now 0.6" in capsys.readouterr().err


def test_every_view_gives_the_box_in_pixels_of_the_picture(teacher: Path) -> None:
    image = blob((70, 20, 110, 60), size=(160, 128))
    with_views = TeacherEnsemble(
        [open_teacher(str(teacher), labels=["person"], score=0.1)],
        classes=["person"],
        views=TeacherViews(flip=True, scales=(1.0, 0.5, 2.0)),
        score=0.1,
    )
    with with_views:
        found = with_views.detect(image)
    np.testing.assert_allclose(found.boxes_xyxy[0], [70, 20, 110, 60], atol=2.5)
    assert found.scores[0] == pytest.approx(SCORE, abs=1e-3)
    assert len(found.scores) == 1  # what tiles cut off is not taken for a box


@pytest.mark.parametrize(("width", "height", "scale"), [(640, 480, 2.0), (333, 100, 3.0), (70, 70, 4.0), (99, 50, 0.5)])
def test_windows_cover_the_picture(width: int, height: int, scale: float) -> None:
    covered = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in windows_of(width, height, scale):
        covered[max(0, y0) : y1, max(0, x0) : x1] = True
        if scale > 1:
            assert x0 >= 0
            assert y0 >= 0
            assert x1 <= width
            assert y1 <= height
    assert covered.all()


def test_classes_of_the_file_that_are_not_asked_for_are_left_out(tmp_path: Path, teacher: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(blob((20, 30, 60, 90))))
    (tmp_path / "names.txt").write_text("vase\nperson\n")
    assert label(tmp_path, tmp_path / "a.png", "--onnx-labels", tmp_path / "names.txt") == 0
    assert written(tmp_path)["annotations"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("a.mp4:9-3", "first frame is behind"), ("a.zip:split", "column=value"), ("a.zip:=x", "column=value")],
)
def test_source_that_says_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PictureSource.parse(text)


def test_selection_must_fit_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(blob()))
    with pytest.raises(InputError, match="folder or a zip"):
        pictures_of(PictureSource.parse(f"{tmp_path / 'a.png'}:split=train"))
    with pytest.raises(InputError, match="chosen of a video"):
        pictures_of(PictureSource.parse(f"{tmp_path}:1-2"))
    with pytest.raises(InputError, match=r"no index\.csv"):
        list(pictures_of(PictureSource.parse(f"{tmp_path}:split=train")))


def test_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(SourceError):
        list(pictures_of(PictureSource.parse(str(tmp_path / "a.mp4"))))


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    import onnx
    import onnx.parser

    with pytest.raises(InputError, match="no teacher"):
        open_teacher(str(tmp_path / "absent.onnx"), labels=["person"], score=0.1)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y) {y = Relu (x)}'
    )
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(EngineError, match="DETR"):
        open_teacher(str(tmp_path / "other.onnx"), labels=["person"], score=0.1)


def test_published_deimv2_finds_the_person_of_the_people_video(tmp_path: Path) -> None:
    video = shared_data("video", "one-by-one-person-detection.mp4")
    weights = shared_data("weights", "deimv2_femto", "deimv2_hgnetv2_femto_coco.onnx")
    words = [f"{video}:80-95", "--teacher", str(weights), "--output", str(tmp_path / "labels"), "--every", "5"]
    assert main([*words, "--threads", "1"]) == 0
    result = written(tmp_path)
    certain = [item for item in result["annotations"] if not item["iscrowd"]]
    assert len(result["images"]) >= 2
    assert {item["image_id"] for item in certain} == {image["id"] for image in result["images"]}


def test_last_pictures_of_each_source_are_held_out(tmp_path: Path, teacher: Path) -> None:
    for name, count in (("first", 4), ("second", 8)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").write_bytes(png(blob((10 + number, 10, 60, 70))))
    assert label(tmp_path, tmp_path / "first", tmp_path / "second", "--hold-out", "0.25") == 0
    parts = {
        part: json.loads((tmp_path / f"labels/annotations/instances_{part}.json").read_text())
        for part in ("train", "val")
    }
    assert [image["file_name"] for image in parts["val"]["images"]] == ["first/3.png", "second/6.png", "second/7.png"]
    assert len(parts["train"]["images"]) == len(parts["train"]["annotations"]) == 9
    assert not (tmp_path / "labels" / "annotations.json").exists()
    assert label(tmp_path, tmp_path / "first", tmp_path / "second", "--resume") == 0  # another share of the same labels
    assert len(written(tmp_path)["images"]) == 12
    assert not list((tmp_path / "labels" / "annotations").iterdir())


def test_bundle_is_a_teacher_at_a_lower_threshold_than_its_own(tmp_path: Path) -> None:
    bundle = write_detector(tmp_path / "cells.edgevis")  # of the classes red and green, threshold 0.5
    (tmp_path / "board.png").write_bytes(png(board((2, 3, (0, 0, 255)), (5, 1, (0, 0, 100)), (6, 6, (0, 200, 0)))))
    words = [str(tmp_path / "board.png"), "--teacher", str(bundle), "--output", str(tmp_path / "labels")]
    assert main([*words, "--classes", "red", "--ignore", "0.3", "--no-flip"]) == 0
    rows = {tuple(item["bbox"]): (item["score"], item["iscrowd"]) for item in written(tmp_path)["annotations"]}
    assert rows == {(24, 16, 8, 8): (1.0, 0), (8, 40, 8, 8): (pytest.approx(100 / 255, abs=1e-3), 1)}


def test_bundle_of_another_task_is_no_teacher(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.edgevis", Tiny())
    with pytest.raises(InputError, match="a teacher is of the task 'detect'"):
        open_teacher(str(bundle), labels=["person"], score=0.1)


@pytest.mark.torch
def test_model_with_weights_is_a_teacher_at_a_low_threshold(tmp_path: Path) -> None:
    weights = shared_data("weights", "yolox_nano", "yolox_nano_coco.safetensors")
    photo = shared_data("sample_images", "grace_hopper.png")
    words = [str(photo), "--teacher", f"yolox-nano={weights}", "--output", str(tmp_path / "labels")]
    assert main([*words, "--ignore", "0.06"]) == 0
    result = written(tmp_path)
    best = max(result["annotations"], key=lambda item: item["score"])
    assert best["score"] > 0.8
    assert min(item["score"] for item in result["annotations"]) < 0.3  # below what a predictor gives


@pytest.mark.torch
def test_model_of_another_task_is_no_teacher() -> None:
    from edgevis import models

    weights = models.shipped_weights("osnet-x0-25")
    with pytest.raises(InputError, match="task 'reid'"):
        open_teacher(f"osnet-x0-25={weights}", labels=["person"], score=0.1)
