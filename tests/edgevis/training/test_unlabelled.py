"""``python -m edgevis.train --unlabelled``: pictures without labels are answered, told and checked."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from edgevis.train import main

from training_data import write_classes, write_masks, write_persons

pytestmark = pytest.mark.torch

VALUES = (
    "epochs=1", "steps_per_epoch=2", "way=2", "query=1", "episodes_per_step=2", "warm_up_epochs=0", "validate_every=0",
    "test_way=2", "test_query=2", "test_episodes=2", "test_shots=[1]", "held_out=0", "loss=global",
    "unlabelled_batch=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "classes")


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the same kind, which are no part of the data."""
    folder = tmp_path_factory.mktemp("camera") / "frames"
    write_classes(folder, classes=8, images=13)
    kept = sorted((folder).rglob("*.png"))[-8:]
    other = folder.parent / "door"
    other.mkdir()
    for number, path in enumerate(kept):
        shutil.copy(path, other / f"{number}.png")
    return other


def command(data: Path, output: Path, *values: str) -> list[str]:
    settings = [part for value in (*VALUES, *values) for part in ("--set", value)]
    return ["regnet", "--option", "variant=regnetx_002", "--option", "side=64", "--recipe", "small", "--data",
            str(data), "--output", str(output), "--quiet", *settings]  # fmt: skip


def row(output: Path) -> dict[str, str]:
    with (output / "log.csv").open() as file:
        return list(csv.DictReader(file))[-1]


def test_the_term_stands_beside_the_task_s(classes: Path, camera: Path, tmp_path: Path) -> None:
    assert main([*command(classes, tmp_path / "run"), "--unlabelled", str(camera)]) == 0
    values = row(tmp_path / "run")
    # Of 4 rows over 6 or more classes: minus the norm over the batch is from -1 to -1 / sqrt(classes).
    assert -1 <= float(values["unlabelled"]) < -0.1
    assert float(values["global"]) > 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["data"]["unlabelled source"], report["data"]["unlabelled images"]) == ("door", 8)
    assert "--unlabelled door" in report["command"]
    assert len(report["unlabelled"]["sha256"]) == 64


def test_pictures_that_evaluate_are_refused(classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(classes, tmp_path / "run"), "--unlabelled", str(classes)]) == 1
    said = capsys.readouterr().err
    assert "in both unlabelled and test" in said or "in unlabelled and test" in said
    assert "--allow-leakage" in said


def test_what_does_not_go_with_them(
    classes: Path, camera: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--unlabelled", str(camera)]
    assert main([*command(classes, tmp_path / "a", "loss=local"), *given]) == 1
    assert "the loss 'local' has no classifier" in capsys.readouterr().err
    assert main([*command(classes, tmp_path / "b", "unlabelled_batch=9"), *given]) == 1
    assert "has 8 pictures; allowed: at least unlabelled_batch, 9" in capsys.readouterr().err
    assert main([*command(classes, tmp_path / "c"), *given, "--teacher-model", "osnet-x0-25"]) == 1
    assert "--unlabelled and a teacher do not go together" in capsys.readouterr().err
    masks = write_masks(tmp_path / "masks")
    assert main(["enet", "--recipe", "small", "--data", str(masks), "--output", str(tmp_path / "d"), *given]) == 1
    assert "the task 'segment' takes no pictures without labels" in capsys.readouterr().err


def test_persons_of_a_new_camera(tmp_path: Path) -> None:
    data = write_persons(tmp_path / "persons")
    camera = write_persons(tmp_path / "camera", persons=13, images=2)
    values = ("epochs=1", "steps_per_epoch=1", "identities=2", "images=2", "triplet_epochs=0", "validate_every=0",
              "warm_up_epochs=0", "unlabelled_batch=4", "unlabelled_reduction=mean")  # fmt: skip
    settings = [part for value in values for part in ("--set", value)]
    arguments = ["osnet-x0-25", "--recipe", "small", "--data", str(data), "--output", str(tmp_path / "run"), "--quiet"]
    assert main([*arguments, *settings, "--unlabelled", str(camera), "--allow-leakage"]) == 0
    assert -1 <= float(row(tmp_path / "run")["unlabelled"]) < 0
