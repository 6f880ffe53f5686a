"""The command ``edgevis``: every verb on a real tiny bundle, as text and as JSON, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from edgevis.cli import main

from bundles import (
    ORT,
    Tiny,
    TinyEngine,
    edited_manifest,
    needs_openvino,
    picture,
    textured,
    tiny_weights,
    write_tiny_bundle,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two pictures of each of two subjects."""
    folder = tmp_path / "photos"
    for subject, seed in (("red", 3), ("blue", 9)):
        (folder / subject).mkdir(parents=True)
        for number in range(2):
            # The same shapes twice as large, so that both pictures of a subject embed alike but are not equal.
            image = cv2.resize(picture(seed), None, fx=2 + number, fy=2 + number)
            assert cv2.imwrite(str(folder / subject / f"{number}.png"), image)
    return folder


def test_enroll_reports_what_speaks_against_an_image(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = tmp_path / "anna", tmp_path / "lobby.enrolment"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), textured(1, 64, 32))
    cv2.imwrite(str(folder / "b.png"), cv2.GaussianBlur(textured(2, 64, 32), (0, 0), 5))
    cv2.imwrite(str(folder / "c.png"), textured(1, 64, 32))
    command = ["enroll", str(tiny_bundle), "anna", str(folder), "--enrolment", str(path)]
    assert main([*command, "--strict"]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "2 of 3 images cannot be used, so nothing was enrolled" in error
    assert f"{folder / 'b.png'}: blurred: sharpness" in error
    assert f"{folder / 'c.png'}: duplicate: nearly the same picture" in error
    assert not path.exists()
    assert main([*command, "--strict", "--skip-bad", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["added"] == data["report"]["enrolled"] == 1
    assert [item["enrolled"] for item in data["report"]["judgements"]] == [True, False, False]
    path.unlink()
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "3 images added" in text
    assert f"  {folder / 'b.png'}: blurred: sharpness" in text


@pytest.fixture
def enrolment(tiny_bundle: Path, photos: Path, tmp_path: Path) -> Path:
    """Both subjects enrolled by the command line."""
    path = tmp_path / "lobby.enrolment"
    for subject in ("red", "blue"):
        assert main(["enroll", str(tiny_bundle), subject, str(photos / subject), "--enrolment", str(path)]) == 0
    return path


def test_enroll_extends_the_file_and_says_what_next(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "main lobby.enrolment"
    assert main(["enroll", str(tiny_bundle), "red", str(photos / "red"), "--enrolment", str(path)]) == 0
    text = capsys.readouterr().out
    assert "2 images added to 'red'" in text
    assert f"next: edgevis predict {tiny_bundle} IMAGE --enrolment '{path}'" in text
    assert main(["enroll", str(tiny_bundle), "blue", str(photos / "blue"), "--enrolment", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["labels"] == ["red", "blue"]
    assert data["added"] == 2


def test_predict_names_the_subjects(
    tiny_bundle: Path, photos: Path, enrolment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    command = ["predict", str(tiny_bundle), str(photos), "--enrolment", str(enrolment), "--top-k", "2", "--json"]
    assert main(command) == 0
    data = json.loads(capsys.readouterr().out)
    assert [result["matches"][0]["label"] for result in data["results"]] == ["blue", "blue", "red", "red"]
    assert all(Path(result["image"]).is_file() for result in data["results"])


def test_predict_prints_a_row_for_each_image_and_draws(
    tiny_bundle: Path, photos: Path, enrolment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    image = photos / "red" / "0.png"
    drawn = tmp_path / "drawn"
    command = ["predict", str(tiny_bundle), str(image), "--enrolment", str(enrolment), "--plot", str(drawn)]
    assert main(command) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["image", "label", "score", "ms"]
    assert row.split()[:2] == ["0.png", "red"]
    plotted = cv2.imread(str(drawn / "0.png.jpg"))
    assert plotted is not None
    assert plotted.shape == cv2.imread(str(image)).shape


def test_a_strip_of_the_gallery_is_drawn(
    tiny_bundle: Path, photos: Path, enrolment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = photos / "red" / "0.png"
    pictures, drawn = tmp_path / "pictures", tmp_path / "drawn"
    pictures.mkdir()
    shutil.copy(image, pictures / "red.png")
    command = ["predict", str(tiny_bundle), str(image), "--enrolment", str(enrolment), "--pictures", str(pictures)]
    assert main(command) == 1
    assert "give both" in capsys.readouterr().err
    assert main([*command, "--plot", str(drawn)]) == 0
    height, width = cv2.imread(str(image)).shape[:2]
    assert cv2.imread(str(drawn / "0.png.jpg")).shape == (height + width // 5, width, 3)


def test_pictures_of_one_name_are_drawn_apart(
    tiny_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tiny_bundle), str(photos), "--plot", str(tmp_path / "drawn")]) == 0
    capsys.readouterr()
    drawn = sorted(path.relative_to(tmp_path / "drawn").as_posix() for path in (tmp_path / "drawn").rglob("*.jpg"))
    assert drawn == ["blue/0.png.jpg", "blue/1.png.jpg", "red/0.png.jpg", "red/1.png.jpg"]


def test_predict_without_enrolment_knows_nobody(
    tiny_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tiny_bundle), str(photos / "red" / "0.png")]) == 0
    row, note, advice = capsys.readouterr().out.splitlines()[2:]
    assert "unknown" in row
    assert note == "nothing is enrolled"
    assert advice.startswith("next: edgevis enroll")


def test_info_says_loudly_that_weights_are_random(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_bundle)]) == 0
    text = capsys.readouterr().out
    assert "RANDOM WEIGHTS" in text
    assert "onnxruntime-fp32" in text
    assert main(["info", str(tiny_bundle), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["running"]["backend"] == "onnxruntime"
    assert data["manifest"]["weights"]["trained"] is False
    assert data["cannot_run"] is None


def test_info_says_why_nothing_runs(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_bundle), "--precision", "int8"]) == 0
    assert "no engine for" in capsys.readouterr().out


@needs_openvino
def test_verify_proves_every_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny_bundle(tmp_path / "two.edgevis", Tiny(engines=(ORT, TinyEngine("openvino"))))
    assert main(["verify", str(bundle), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["passed"] is True
    assert {check["engine"]: check["status"] for check in data["engines"]} == {
        "onnxruntime-fp32": "passed",
        "openvino-fp32": "passed",
    }


def test_verify_fails_when_the_engine_computes_something_else(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The engine of another model with hashes that hold: only running it can tell.
    other = write_tiny_bundle(tmp_path / "other.edgevis", Tiny(weights=tiny_weights(seed=1)))
    name = "engines/onnxruntime-fp32/embed.onnx"
    (tiny_bundle / name).write_bytes((other / name).read_bytes())
    with edited_manifest(tiny_bundle) as data, edited_manifest(other) as foreign:
        data["files"][name] = foreign["files"][name]
    assert main(["verify", str(tiny_bundle)]) == 1
    text = capsys.readouterr().out
    assert "onnxruntime-fp32 failed: graph 'embed'" in text


def test_verify_names_the_altered_file(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tiny_bundle / "golden.npz").open("r+b") as file:
        file.seek(40)
        file.write(b"\xff")
    assert main(["verify", str(tiny_bundle)]) == 1
    assert "error:" in (message := capsys.readouterr().err)
    assert "golden.npz" in message


def test_bench_times_every_engine_at_every_batch(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_bundle), "--batch", "1,3", "--seconds", "0.1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [(entry["engine"], entry["batch"]) for entry in results] == [
        ("onnxruntime-fp32", 1),
        ("onnxruntime-fp32", 3),
    ]
    assert all(0 < entry["latency"]["p50_ms"] <= entry["latency"]["p99_ms"] for entry in results)
    assert main(["bench", str(tiny_bundle), "--batch", "1", "--seconds", "0.1"]) == 0
    assert "images/s" in capsys.readouterr().out


def test_bench_refuses_no_time(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_bundle), "--seconds", "nan"]) == 1
    assert "seconds is nan; allowed: a number > 0" in capsys.readouterr().err


@pytest.mark.parametrize("batch", ["0", "1,x", ",", "9999"])
def test_bench_refuses_batch_sizes(tiny_bundle: Path, batch: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tiny_bundle), "--batch", batch]) == 1
    assert "allowed: sizes of 1 to 4096" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["info", "nowhere.edgevis"], "there is no bundle at nowhere.edgevis"),
        (["predict", "{bundle}", "nowhere.jpg"], "there is no image file nowhere.jpg"),
        (["predict", "{bundle}", "{empty}"], "holds no images"),
        (["predict", "{bundle}", "{photo}", "--enrolment", "nowhere.enrolment"], "there is no file nowhere.enrolment"),
        (["predict", "{bundle}", "{photo}", "--enrolment", "{empty}"], "empty cannot be read: Is a directory"),
        (["predict", "{bundle}", "{photo}", "--output", "drawn.jpg"], "drawn.jpg is the name of a file; name a folder"),
        (["predict", "{bundle}", "{photo}", "--backend", "caffe"], "there is no backend 'caffe'"),
        (["enroll", "{bundle}", " ", "{photo}", "--enrolment", "x.enrolment"], "label ' ' is not allowed"),
    ],
)
def test_an_error_is_one_line_and_exit_status_one(
    command: list[str],
    message: str,
    tiny_bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"bundle": tiny_bundle, "photo": photos / "red" / "0.png", "empty": tmp_path / "empty"}
    assert main([part.format(**places) for part in command]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert message in output.err
    assert "Traceback" not in output.err
    assert not (tmp_path / "x.enrolment").exists()


def test_the_installed_command_runs(tiny_bundle: Path) -> None:
    command = Path(sys.executable).parent / "edgevis"
    done = subprocess.run([command, "info", tiny_bundle], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime-fp32" in done.stdout


def test_a_reader_that_goes_away_is_no_error(tiny_bundle: Path) -> None:
    command = [Path(sys.executable).parent / "edgevis", "info", tiny_bundle, "--json"]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
