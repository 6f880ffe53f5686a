"""Predictions of a video, a camera or an address, and verbs on an enrolment file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgevis.cli import main
from edgevis.cli._streams import stream_of
from runtime.enrolment.file import load_enrolment

from bundles import Tiny, picture, write_tiny_bundle

FRAMES = 5


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "door.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (32, 64))
    assert writer.isOpened()
    for _ in range(FRAMES):
        writer.write(picture(1, 64, 32))
    writer.release()
    return path


@pytest.fixture
def enrolment(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "lobby.enrolment"
    for label, seeds in (("anna", (1, 2)), ("björn", (3,))):
        folder = tmp_path / label
        folder.mkdir()
        for seed in seeds:
            assert cv2.imwrite(str(folder / f"{seed}.png"), picture(seed, 64, 32))
        assert main(["enroll", str(tiny_bundle), label, str(folder), "--enrolment", str(path)]) == 0
    capsys.readouterr()
    return path


def test_what_is_a_stream(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert stream_of([str(video)]) == video
    for name in ("walk.264", "WALK.DAV", "walk.mjpg"):  # as cameras and recorders name them
        Path(name).touch()
        assert stream_of([name]) == Path(name)
    assert stream_of(["rtsp://camera/1"]) == "rtsp://camera/1"
    assert stream_of(["0"]) == 0
    assert stream_of(["/dev/video2"]) == 2
    assert stream_of(["a.jpg", "b.jpg"]) is None
    assert stream_of(["nowhere.avi"]) is None
    (tmp_path / "7").mkdir()
    assert stream_of(["7"]) is None  # a folder of images


def test_a_video_is_predicted_frame_by_frame(
    tiny_bundle: Path, video: Path, enrolment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tiny_bundle), str(video), "--enrolment", str(enrolment), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["frame"] for line in lines] == list(range(FRAMES))
    assert {line["matches"][0]["label"] for line in lines} == {"anna"}
    assert main(["predict", str(tiny_bundle), str(video), "--enrolment", str(enrolment), "--frames", "2"]) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["frame", "label", "score", "ms"]
    assert [row.split()[0] for row in rows] == ["0", "1"]


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_frames_are_drawn_into_a_video(tiny_bundle: Path, video: Path, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / "out" / f"drawn{suffix}"
    assert main(["predict", str(tiny_bundle), str(video), "--output", str(output)]) == 0
    capture = cv2.VideoCapture(str(output))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10.0)
    count = 0
    while capture.read()[0]:
        count += 1
    capture.release()
    assert count == FRAMES


def test_frames_are_drawn_as_pictures(tiny_bundle: Path, video: Path, tmp_path: Path) -> None:
    output = tmp_path / "drawn"
    for _ in range(2):  # the second time in place of the first
        assert main(["predict", str(tiny_bundle), str(video), "--output", str(output), "--frames", "3"]) == 0
        assert sorted(path.name for path in output.iterdir()) == [f"frame-{number:06d}.jpg" for number in range(3)]
    drawn = cv2.imread(str(output / "frame-000000.jpg"))
    assert drawn is not None
    assert drawn.shape == (64, 32, 3)


def test_what_is_there_already_is_left_alone(
    tiny_bundle: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = video.read_bytes()
    assert main(["predict", str(tiny_bundle), str(video), "--output", str(video)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert video.read_bytes() == before
    (tmp_path / "drawn").mkdir()
    assert cv2.imwrite(str(tmp_path / "drawn" / "frame-000000.jpg"), picture(1))
    before = (tmp_path / "drawn" / "frame-000000.jpg").read_bytes()
    assert main(["predict", str(tiny_bundle), str(video), "--output", str(tmp_path / "drawn")]) == 1
    assert "was not drawn by edgevis" in capsys.readouterr().err
    assert (tmp_path / "drawn" / "frame-000000.jpg").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["{video}", "{video}"], "name nothing else beside it"),
        (["{video}", "--masks", "m"], "--masks is for images"),
        (["{video}", "--frames", "0"], "--frames is 0; allowed"),
        (["{video}", "--output", "x.wmv"], "videos are written as .avi, .mkv, .mp4"),
        (["{video}", "--output", "x.jpg"], "x.jpg is the name of a file; name a folder"),
        (["{video}", "--threshold", "0.5", "--false-accept-rate", "0.1"], "give one of them"),
        (["file:///nowhere.avi"], "there is no file /nowhere.avi"),
    ],
)
def test_what_cannot_be_done_with_a_stream(
    tiny_bundle: Path,
    video: Path,
    more: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["predict", str(tiny_bundle), *(part.format(video=video) for part in more)]) == 1
    assert message in capfd.readouterr().err


# Verbs on an enrolment


def test_labels_are_listed_with_their_counts(
    tiny_bundle: Path, enrolment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", str(tiny_bundle), str(enrolment)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[2:]] == [["anna", "2"], ["björn", "1"]]
    assert main(["list", str(tiny_bundle), str(enrolment), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["labels"] == {"anna": 2, "björn": 1}
    assert (data["threshold"], data["strangers"]) == (None, 0)


def test_forgotten_labels_are_gone(tiny_bundle: Path, enrolment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_enrolment(enrolment)
    assert main(["forget", str(tiny_bundle), str(enrolment), "nobody", "anna"]) == 1
    assert "has no label 'nobody', so nothing was removed; it has 'anna', 'björn'" in capsys.readouterr().err
    assert list(load_enrolment(enrolment).rows) == ["anna", "björn"]
    assert main(["forget", str(tiny_bundle), str(enrolment), "anna", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["björn"]
    after = load_enrolment(enrolment)
    np.testing.assert_array_equal(after.rows["björn"], before.rows["björn"])
    assert before.rows["anna"][0].tobytes() not in enrolment.read_bytes()
    assert main(["forget", str(tiny_bundle), str(enrolment), "björn"]) == 0
    assert "enrolled: none" in capsys.readouterr().out
    assert main(["list", str(tiny_bundle), str(enrolment)]) == 0
    assert "nothing is enrolled" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [["list"], ["forget"]])
def test_another_encoders_enrolment_is_refused(
    tmp_path: Path, enrolment: Path, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_bundle(tmp_path / "other.edgevis", Tiny("classify"))
    more = ["anna"] if verb == ["forget"] else []
    assert main([*verb, str(other), str(enrolment), *more]) == 1
    assert "was made by another encoder" in capsys.readouterr().err
    assert main([*verb, str(other), os.devnull + "x", *more]) == 1
    assert "error: " in capsys.readouterr().err


def test_a_threshold_decides(
    tiny_bundle: Path, enrolment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(tmp_path / "björn" / "3.png")

    def label(*more: str) -> str | None:
        command = ["predict", str(tiny_bundle), image, "--enrolment", str(enrolment), *more, "--json"]
        assert main(command) == 0
        return json.loads(capsys.readouterr().out)["results"][0]["label"]  # type: ignore[no-any-return]

    assert label("--threshold", "-1") == "björn"
    picked = str(tmp_path / "anna" / "1.png")
    command = ["enroll", str(tiny_bundle), "anna", picked, "--enrolment", str(enrolment), "--json"]
    assert main([*command, "--threshold", "0.25"]) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] == 0.25
    assert load_enrolment(enrolment).threshold == 0.25
    assert main([*command, "--threshold", "auto"]) == 0
    assert load_enrolment(enrolment).threshold is None


@pytest.mark.parametrize("text", ["2", "nan", "high"])
def test_what_is_no_threshold(tiny_bundle: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", str(tiny_bundle), "x.jpg", "--threshold", text])
    assert "allowed: -1 to 1, or auto" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["verify", "bench"])
def test_engines_of_one_precision(tiny_bundle: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, str(tiny_bundle), "--precision", "int8"]) == 1
    assert "has no engine for precision='int8'; it has onnxruntime-fp32" in capsys.readouterr().err
    more = ["--seconds", "0.1", "--batch", "1"] if verb == "bench" else []
    assert main([verb, str(tiny_bundle), "--precision", "fp32", *more]) == 0
    assert "onnxruntime-fp32" in capsys.readouterr().out
