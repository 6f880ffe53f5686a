"""``--recipe moco``: an encoder learns from pictures alone, and a training goes on from it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgevis import models
from edgevis.models.recipe_moco import recipes_of
from edgevis.train import main

from training_data import write_classes, write_persons

pytestmark = pytest.mark.torch

VALUES = (
    "batch=8",
    "queue=16",
    "groups=2",
    "epochs=2",
    "steps_per_epoch=2",
    "held_out=0.2",
    "warm_up_epochs=0",
    "schedule=constant",
)
REGNET = ["regnet", "--option", "variant=regnetx_002", "--option", "side=64"]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("frames") / "frames", classes=4, images=10)


def command(model: list[str], data: Path, output: Path, *values: str) -> list[str]:
    settings = [part for value in (*VALUES, *values) for part in ("--set", value)]
    return [*model, "--recipe", "moco", "--data", str(data), "--output", str(output), "--quiet", *settings]


def test_it_is_offered_for_every_encoder() -> None:
    offered = {entry.name for entry in models.declared_entries() if "moco" in recipes_of(entry)}
    assert {"resnet12", "osnet-x0-25", "epri-net", "regnet", "efficientnet-lite0"} <= offered
    assert not offered & {"enet", "yolox-nano", "hsnet-hm"}


def test_pre_training_then_training(frames: Path, tmp_path: Path) -> None:
    """The weights hold no head, key encoder or queue; a few-shot training begins with them."""
    output = tmp_path / "pre"
    assert main(command(REGNET, frames, output)) == 0
    weights = load_file(output / "best.safetensors")
    model = models.create("regnet", variant="regnetx_002", side=64)
    assert weights.keys() <= model.state_dict().keys()
    report = json.loads((output / "report.json").read_text())
    assert report["data"] == {"source": "frames", "training images": 32, "validation images": 8}
    assert report["evaluation"]["split"] == "pictures held out, two views each"
    with (output / "log.csv").open() as file:
        assert all(float(row["loss"]) > 0 for row in csv.DictReader(file))
    values = ("epochs=0", "way=2", "query=1", "episodes_per_step=1", "test_way=2", "test_query=2", "test_episodes=2")
    settings = [part for value in values for part in ("--set", value)]
    begun = ["--weights", str(output / "best.safetensors"), "--output", str(tmp_path / "run"), "--quiet"]
    data = write_classes(tmp_path / "classes")
    assert main([*REGNET, "--recipe", "small", "--data", str(data), *begun, *settings]) == 0
    after = load_file(tmp_path / "run" / "best.safetensors")
    name = "s4.b1.conv1.conv.weight"
    assert torch.equal(after[name], weights[name])


def test_it_goes_on_bit_by_bit(frames: Path, tmp_path: Path) -> None:
    """The queue, its pointer and the key encoder are part of a checkpoint."""
    assert main(command(REGNET, frames, tmp_path / "whole")) == 0
    assert main(command(REGNET, frames, tmp_path / "parts", "epochs=1")) == 0
    assert main([*command(REGNET, frames, tmp_path / "parts"), "--resume"]) == 0
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert any("queue" in name for name in one)
    different = [name for name in one if "learning_rate" not in name and not torch.equal(one[name], other[name])]
    assert not different


def test_what_is_refused(frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for values, said in (
        (("queue=64",), "has 32 pictures to learn from, 8 are held out; allowed: at least queue and batch, 64 and 8"),
        (("queue=12",), "a batch that divides the queue"),
        (("groups=8",), "of 2 pictures or more each"),
    ):
        assert main(command(REGNET, frames, tmp_path / "a", *values)) == 1
        assert said in capsys.readouterr().err
    assert main([*command(REGNET, frames, tmp_path / "b"), "--teacher-model", "osnet-x0-25"]) == 1
    assert "learns from pictures alone: leave --teacher out" in capsys.readouterr().err
    assert main([*command(REGNET, frames, tmp_path / "c"), "--devices", "2"]) == 1
    assert "devices is 2; allowed with the recipe 'moco': 1" in capsys.readouterr().err
    assert main(command(["enet"], frames, tmp_path / "d")) == 1
    assert "'enet' has no recipe 'moco'; allowed: " in capsys.readouterr().err


def test_persons(tmp_path: Path) -> None:
    data = write_persons(tmp_path / "persons")
    assert main(command(["osnet-x0-25"], data, tmp_path / "run", "epochs=1", "steps_per_epoch=1")) == 0
    assert (tmp_path / "run" / "best.safetensors").is_file()
