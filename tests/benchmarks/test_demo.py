"""The demo with the ready bundles, over the photographs of the wheels and over a video made of them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import demo
from benchmarks.video_scenes import PhotoPan, by_another_camera
from runtime.images.decode import read_image
from runtime.pipeline import IDENTIFIER
from runtime.predictor import Predictor
from runtime.streams.reader import frames

from detection_bundles import write_detector
from people import FRAMES, write_people_video

LENGTH = 40


@pytest.mark.parametrize("over", ["photographs", "video"])
def test_the_demo_writes_all_it_promises(
    over: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PhotoPan, "length", LENGTH)
    output = tmp_path / "out"
    video = ["--video", str(write_people_video(tmp_path / "people.avi"))] if over == "video" else []
    assert demo.main(["--output", str(output), "--seconds", "0", *video]) == 0
    assert {path.name for path in output.iterdir()} == {"picture.jpg", "video.mp4"}
    assert read_image(output / "picture.jpg").std() > 20, "the picture shows something"
    assert len(list(frames(output / "video.mp4"))) == (LENGTH if over == "photographs" else FRAMES)
    out = capsys.readouterr().out
    assert ("Enrolled: Grace Hopper, 8 crops" in out) == (over == "photographs")
    # In so few frames of the photographs nobody else is seen long enough to be given a number.
    assert ("unknown-1" if over == "video" else "unknown ") in out


def test_the_stranger_of_the_demo_is_not_taken_for_the_enrolled() -> None:
    pan = PhotoPan()
    with Predictor(IDENTIFIER) as predictor:
        for label, crops in pan.examples():
            predictor.enroll(label, crops)
        seen = {person: box.crop(pan.canvas) for person, box in pan.persons}
        for light in (0.7, 1.0, 1.2):
            views = (np.clip(crop * light, 0, 255).astype(np.uint8) for crop in seen.values())
            found = [result.label for result in predictor.predict(list(by_another_camera(views)))]
            assert found == ["Eileen Collins", None, "Grace Hopper"]


def test_the_demo_times_its_bundles(tiny_bundle: Path, tmp_path: Path) -> None:
    write_people_video(tmp_path / "people.avi")
    bundles = ["--bundle", str(tiny_bundle), "--detect", str(write_detector(tmp_path / "squares.edgevis"))]
    output = tmp_path / "out"
    assert (
        demo.main([*bundles, "--video", str(tmp_path / "people.avi"), "--output", str(output), "--seconds", "0.1"]) == 0
    )
    timings = json.loads((output / "latency.json").read_text())["bundles"]
    assert len(timings) == 2
    assert all({entry["batch"] for entry in timing["results"]} == {1, 8} for timing in timings)
    assert (output / "latency.md").read_text().count("\n| ") > 4


def test_a_video_with_nobody_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (320, 240))
    for _ in range(5):
        writer.write(np.full((240, 320, 3), 180, np.uint8))
    writer.release()
    assert demo.main(["--video", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "nobody was seen" in capsys.readouterr().err


def test_a_file_that_is_no_video_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("not a video")
    assert demo.main(["--video", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "check that it is a whole video" in capsys.readouterr().err
