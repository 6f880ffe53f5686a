"""The arguments of ``python -m edgevis.train``: where values come from, and the error of each wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgevis import models
from edgevis.train import main

from training_data import write_masks, write_persons
from training_runs import SMALL_ENET, trained

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masks(tmp_path_factory.mktemp("masks"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonesuch"], "no model 'nonesuch'"),
        (["hsnet-hm", "--recipe", "large"], "'hsnet-hm' has no recipe 'large'; allowed: paper, small"),
        (["enet", "--set", "epoch=3"], "recipe: unknown field 'epoch'; allowed: adam_beta2, alpha, angles, batch"),
        (["enet", "--set", "epochs=-1"], "recipe: epochs is -1; allowed: a whole number from 0 to"),
        (["enet", "--set", "epochs=many"], "recipe: epochs is 'many'; allowed: a whole number from 0 to"),
        (["enet", "--set", "momentum=1"], "momentum is 1"),
        (["enet", "--option", "classes=2"], "classes is 2; training knows one kind of object"),
        (["enet", "--option", "side=33"], "side is 33; allowed: multiples of 8"),
        (["enet", "--option", "side=abc"], "side is 'abc'; allowed: multiples of 8 from 8 to"),
        (["enet", "--set", "held_out=5"], "recipe: held_out is 5; allowed: a number from 0 to below 1"),
        (["epri-net", "--option", "height=10"], "height is 10; allowed: multiples of 32 from 128 to 768"),
        (["osnet-x0-25", "--recipe", "small", "--set", "erase=7"], "recipe: erase is 7; allowed: a number from 0 to 1"),
        (["enet", "--seed", "-1"], "seed is -1; allowed: a whole number from 0 to"),
        (["enet", "--seed", "abc"], "seed is 'abc'; allowed: a whole number from 0 to"),
        (["enet", "--set", "learning_rate=1e60"], "learning_rate is 1e+60; allowed: a number above 0 to 1e+38"),
        (["enet", "--set", "weight_decay=1e39"], "weight_decay is 1e+39; allowed: a number from 0 to 1e+30"),
        (["enet", "--set", "pairwise_weight=1e300"], "pairwise_weight is 1e+300; allowed: a number from 0 to 1e+30"),
        (["enet", "--set", "alpha=1e31"], "alpha is 1e+31; allowed: a number above 0 to 1e+30"),
        (["enet", "--devices", "0"], "devices is 0; allowed: a whole number from 1 to"),
        (["enet", "--workers", "-1"], "workers is -1; allowed: a whole number from 0 to"),
        (["enet", "--weights", "nowhere.safetensors"], "cannot read nowhere.safetensors"),
        (["enet", "--config", "nowhere.json"], "cannot read nowhere.json"),
        (["osnet-x0-25", "--recipe", "small"], "has 1 person, 1 of them with pictures by two cameras"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--data", str(masks), "--output", str(tmp_path / "run"), "--quiet"]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_leakage_is_refused_or_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_masks(tmp_path / "data")
    with (data / "index.csv").open("a") as table:
        table.write("000,val\n")
    arguments = [*SMALL_ENET, "--data", str(data), "--output", str(tmp_path / "run"), "--set", "epochs=1"]
    assert main(arguments) == 1
    errors = capsys.readouterr().err
    assert "1 image in both train and val (images/000.png); correct the data, or give --allow-leakage" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--allow-leakage"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["data"]["leakage"] == ["1 image in both train and val (images/000.png)"]
    assert report["command"].endswith("--allow-leakage")


def test_options_that_the_data_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["osnet-x0-25", "--recipe", "small", "--data", str(write_persons(tmp_path / "data"))]
    assert main([*arguments, "--output", str(tmp_path / "run"), "--option", "num_identities=2"]) == 1
    assert "num_identities is 2; allowed: 6, as the data have, or leave it out" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_training(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL_ENET, "--data", str(masks), "--output", str(tmp_path / "run"), "--set", "supervision=masks"]
    assert main([*arguments, "--set", "learning_rate=1e30", "--set", "warm_up_epochs=0", "--set", "clip_norm=0"]) == 1
    assert "the loss is not finite in epoch" in capsys.readouterr().err


def test_values_come_from_a_file_and_from_the_command_line(masks: Path, tmp_path: Path) -> None:
    (tmp_path / "values.json").write_text('{"epochs": 3, "batch": 2, "steps_per_epoch": 1}')
    trained(
        "enet", "--recipe", "small", "--option", "side=32", "--data", masks, "--output", tmp_path / "run",
        "--config", tmp_path / "values.json", "--set", "epochs=1",
    )  # fmt: skip
    recipe = json.loads((tmp_path / "run" / "report.json").read_text())["recipe"]
    assert (recipe["name"], recipe["epochs"], recipe["batch"]) == ("small", 1, 2)


def test_beginning_with_weights_of_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.create("osnet-x0-25", num_identities=3)
    save_file(model.state_dict(), tmp_path / "three.safetensors")
    data = write_persons(tmp_path / "data")
    settings = ["epochs=1", "steps_per_epoch=1", "identities=2", "images=2", "learning_rate=1e-9", "warm_up_epochs=0"]
    arguments = [part for value in settings for part in ("--set", value)]
    run = ["osnet-x0-25", "--recipe", "small", "--data", data, "--output", tmp_path / "run", *arguments]
    assert main([*map(str, run), "--weights", str(tmp_path / "three.safetensors")]) == 0
    assert "begun anew: classifier.bias, classifier.weight" in capsys.readouterr().out
    found = load_file(tmp_path / "run" / "best.safetensors")
    torch.testing.assert_close(found["fc.0.weight"], model.state_dict()["fc.0.weight"], rtol=0, atol=1e-6)
    assert found["classifier.weight"].shape[0] != 3


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "hsnet-hm" in capsys.readouterr().out
    assert main(["--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["afl-net"]["paper"]["epochs"] == 100
