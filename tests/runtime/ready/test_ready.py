"""The ready bundles of the package: opened by name, whole, small, and each engine what the build measured."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgevis.cli import main
from runtime import ready
from runtime.bundle.bundle import Bundle
from runtime.errors import BundleNotFoundError
from runtime.pipeline import DETECTOR, IDENTIFIER, Pipeline
from runtime.predictor import Predictor

from bundles import picture, write_tiny_bundle
from people import FRAMES, photographs, write_people_video

REID = "osnet-x0-25"


def test_a_name_is_enough() -> None:
    assert REID in ready.names()
    with Predictor(REID) as predictor:
        assert predictor.info.task == "reid"
        rows = predictor.embed([picture(0), picture(1)])
        assert rows.shape == (2, 512)
        predictor.enroll("someone", [picture(0)])
        assert predictor.predict(picture(0)).matches[0].label == "someone"


def test_the_detector_finds_persons() -> None:
    with Predictor(DETECTOR) as predictor:
        for image in photographs():
            found = predictor.predict(image)
            assert found.labels == ("person",)
            assert found.scores[0] > 0.5


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people_video(tmp_path_factory.mktemp("people") / "people.avi")


def test_a_pipeline_needs_no_argument(video: Path) -> None:
    assert {DETECTOR, IDENTIFIER} <= set(ready.names())
    with Pipeline() as pipeline:
        seen = [people for _, people in pipeline.stream(video)]
    assert len(seen) == FRAMES
    assert [len(people) for people in seen] == [2] * FRAMES
    assert len({person.track for people in seen for person in people}) == 2
    assert {person.identity for person in seen[-1]} == {"unknown-1", "unknown-2"}


def test_watch_needs_a_source_alone(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enrolment, events = tmp_path / "hall.enrolment", tmp_path / "events.jsonl"
    with Predictor(IDENTIFIER) as predictor:
        predictor.enroll("Grace Hopper", [photographs()[1]])
        predictor.save(enrolment)
    command = ["watch", str(video), "--json", "--events", str(events), "--threads", "1"]
    assert main([*command, "--enrolment", str(enrolment)]) == 0
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [frame["frame"] for frame in frames] == list(range(FRAMES))
    assert {item["identity"] for item in frames[-1]["objects"]} == {"Grace Hopper", "unknown-1"}
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert sorted(event["type"] for event in told) == ["appeared", "appeared", "identified", "left", "left"]
    assert {event["identity"] for event in told if event["type"] == "identified"} == {"Grace Hopper"}


@pytest.mark.parametrize("name", ready.names())
def test_each_is_verified_as_on_a_device(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", name, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert "passed" in {engine["status"] for engine in report["engines"]}


def test_they_are_small_and_trained() -> None:
    bundles = [Bundle(name) for name in ready.names()]
    assert sum(bundle.size_bytes for bundle in bundles) <= 22_000_000
    assert all(bundle.manifest.weights.trained for bundle in bundles)
    assert all(bundle.manifest.digest for bundle in bundles)
    assert all(bundle.manifest.target == "cpu" for bundle in bundles)


def test_nothing_lies_beside_what_the_manifests_list() -> None:
    for name in ready.names():
        bundle = Bundle(name)
        files = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
        assert files == {*bundle.manifest.files, "manifest.json"}


def test_hyphen_and_underscore_are_equivalent() -> None:
    assert ready.bundle_path("osnet_x0_25") == ready.bundle_path(REID) == ready.FOLDER / f"{REID}.edgevis"


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_bundle(tmp_path / "tiny.edgevis").rename(REID)
    assert Bundle(REID).manifest.model != REID
    (tmp_path / REID).rename("elsewhere")
    assert Bundle(REID).manifest.model == REID
    os.symlink("nowhere", REID)  # what was there has been taken away; another bundle must not take its place
    with pytest.raises(BundleNotFoundError):
        Bundle(REID)


@pytest.mark.parametrize("path", ["osnet", f"{REID}.edgevis", f"./{REID}", Path(REID), f"bundles/{REID}", "", "."])
def test_only_a_name_is_a_name(path: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ready.bundle_path(path) == Path(path)
    with pytest.raises(BundleNotFoundError) as caught:
        Bundle(path)
    assert REID in str(caught.value) or str(path) in ("", "."), "the message lists those that there are"


def test_no_bundle_is_written_into_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening, enrolling and verifying leave the files as they were installed."""
    monkeypatch.chdir(tmp_path)
    bundle = Bundle(REID)
    before = {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")}
    with Predictor(REID) as predictor:
        predictor.enroll("a", [picture(0)])
        predictor.save("a.enrolment")
    assert {path: path.stat().st_mtime_ns for path in bundle.path.rglob("*")} == before
