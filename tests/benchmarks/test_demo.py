"""The demo on a real tiny engine, over the photographs of the wheels and over a video made of them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import demo
from benchmarks.video_scenes import Box, FixedCamera, PhotoPan
from edgevis import SourceError
from runtime.images.decode import Image, read_image
from runtime.streams.reader import frames

SIZE = (320, 240)


def _room(index: int) -> Image:
    """An empty room with a little noise of the camera."""
    rows = np.linspace(150, 210, SIZE[1])[:, None, None]
    noise = np.random.default_rng(index).normal(0, 2, (SIZE[1], SIZE[0], 3))
    return np.clip(rows + noise, 0, 255).astype(np.uint8)


def _place(index: int) -> Box | None:
    """Where somebody stands in frame ``index``: nobody, then one visitor, nobody, another one, nobody."""
    for start in (30, 110):
        if start <= index < start + 50:
            left = 90 + (index - start)
            return Box(left, 30, left + 80, 225)
    return None


@pytest.fixture(scope="module")
def visitors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of a fixed camera before which two photographed persons walk by, one after the other."""
    persons = [box.crop(canvas) for canvas, box in _portraits()]
    path = tmp_path_factory.mktemp("video") / "door.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 20.0, SIZE)
    for index in range(190):
        image, box = _room(index), _place(index)
        if box is not None:
            portrait = persons[0 if index < 100 else 1]
            image[box.top : box.bottom, box.left : box.right] = cv2.resize(portrait, (80, 195))
        writer.write(image)
    writer.release()
    return path


def _portraits() -> list[tuple[Image, Box]]:
    pan = PhotoPan()
    return [(pan.canvas, box) for name, box in pan.persons if name != "a cameraman"]


def test_a_fixed_camera_finds_who_moves(visitors: Path) -> None:
    camera = FixedCamera(visitors, stride=1)
    found = dict(enumerate(view.boxes for view in camera.views()))
    assert len(found) == 190
    for index, boxes in found.items():
        place = _place(index)
        if place is None:
            assert boxes == (), f"frame {index} shows nobody"
            continue
        assert len(boxes) == 1, f"frame {index} shows one person"
        assert _overlap(boxes[0], place) > 0.7


def test_each_visit_gives_the_examples_of_one_person(visitors: Path) -> None:
    examples = dict(FixedCamera(visitors, stride=1).examples())
    assert list(examples) == ["person 1", "person 2"]
    assert [len(crops) for crops in examples.values()] == [8, 8]


def test_the_panned_boxes_follow_the_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PhotoPan, "length", 60)
    views = list(PhotoPan().views())
    assert len(views) == PhotoPan.length
    counts = [len(view.boxes) for view in views]
    assert counts[0] == counts[-1] == 1, "the pan starts at one portrait and ends at the other"
    assert max(counts) >= 1
    for view in views:
        for box in view.boxes:
            assert 0 <= box.left < box.right <= view.image.shape[1]
            assert 0 <= box.top < box.bottom <= view.image.shape[0]


@pytest.mark.parametrize("over", ["photographs", "video"])
def test_the_demo_writes_all_it_promises(
    over: str, visitors: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PhotoPan, "length", 60)
    output = tmp_path / "out"
    command = ["--bundle", str(tiny_bundle), "--output", str(output), "--seconds", "0.1"]
    assert demo.main(command + (["--video", str(visitors)] if over == "video" else [])) == 0
    assert {path.name for path in output.iterdir()} == {"picture.jpg", "video.mp4", "latency.md", "latency.json"}
    poster = read_image(output / "picture.jpg")
    assert poster.std() > 20, "the picture shows something"
    assert len(list(frames(output / "video.mp4"))) == (60 if over == "photographs" else 95)
    timings = json.loads((output / "latency.json").read_text())["bundles"]
    assert [entry["batch"] for entry in timings[0]["results"]] == [1, 8]


def test_a_video_with_nobody_is_an_error(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 20.0, SIZE)
    for index in range(60):
        writer.write(_room(index))
    writer.release()
    assert demo.main(["--bundle", str(tiny_bundle), "--video", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "shows 0 persons" in capsys.readouterr().err


def test_a_file_that_is_no_video_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("not a video")
    with pytest.raises(SourceError, match="check that it is a whole video"):
        FixedCamera(path)


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    shared = max(0, width) * max(0, height)
    areas = [(box.right - box.left) * (box.bottom - box.top) for box in (a, b)]
    return shared / (sum(areas) - shared)
