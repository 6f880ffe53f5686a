"""What docs/cameras.md and the README show of pipelines, on a video in place of the camera; and the two examples."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

from edgevis.cli import main
from runtime.pipeline import IDENTIFIER
from runtime.predictor import Predictor

from doc_pages import Block, blocks
from locations import ROOT
from people import FRAMES, photographs, write_people_video

CAMERA = re.compile(r"rtsp://[\w./]+")
TESTED = [
    block
    for page in ("README.md", "docs/cameras.md")
    for block in blocks(page)
    if block.mark == "tested by" and "test_cameras" in block.reason
]


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the enrolments that the pages name, and the video ``hall.avi`` of alice and another."""
    folder = tmp_path / "hall"
    folder.mkdir()
    with Predictor(IDENTIFIER) as predictor:
        predictor.enroll("alice", photographs()[0])
        for name in ("lobby", "door"):
            predictor.save(folder / f"{name}.enrolment")
    write_people_video(folder / "hall.avi")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("block", TESTED, ids=lambda block: f"{block.page}:{block.line}")
def test_the_pages_show_what_happens(block: Block, hall: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, cameras = CAMERA.subn("hall.avi", block.code)
    assert cameras == 1
    if block.language == "python":
        exec(compile(code, block.where, "exec"), {})  # noqa: S102
    else:
        words = shlex.split(code)
        assert words[0] == "edgevis"
        assert main(words[1:]) == 0
        assert (hall / "lobby.mp4").stat().st_size > 1000
    out = capsys.readouterr().out
    assert "alice" in out
    assert "unknown-1" in out


def test_both_pages_have_examples() -> None:
    assert {block.page for block in TESTED} == {"README.md", "docs/cameras.md"}


def example(name: str) -> ModuleType:
    spec = util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_app_for_one_camera(hall: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["hall.avi", "--enrolment", "lobby.enrolment"]
    assert example("one_camera").main(command) == 0
    assert capsys.readouterr().out == f"{FRAMES} frames, 2 tracks\n"
    with (hall / "visits" / "visits.csv").open(newline="") as file:
        visits = {identity: float(seconds) for _, identity, seconds in csv.reader(file)}
    assert set(visits) == {"alice", "unknown-1"}
    assert all(seconds > 2 for seconds in visits.values())
    assert [path.name for path in (hall / "visits").glob("*.jpg")] == ["unknown-1.jpg"]
    assert example("one_camera").main(["nowhere.avi"]) == 1
    assert "nowhere.avi" in capsys.readouterr().err


def test_the_app_for_several_cameras(hall: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (hall / "door.avi").write_bytes((hall / "hall.avi").read_bytes())
    command = ["hall.avi", "door.avi", "--enrolment", "door.enrolment"]
    assert example("several_cameras").main(command) == 0
    out = capsys.readouterr().out
    assert "alice at hall.avi" in out
    assert "alice at door.avi, before at hall.avi" in out
    assert "unknown-1 at door.avi" in out
    assert "unknown-2" not in out
    assert f"door.avi: {FRAMES} frames" in out
