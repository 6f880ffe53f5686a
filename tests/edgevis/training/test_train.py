"""``python -m edgevis.train``: every task learns, and a crash loses at most the epoch that it came in."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgevis import Predictor, models
from edgevis.data.rng import draw_at
from edgevis.models.recipe import EpisodeRecipe, SegmentationRecipe
from edgevis.models.resnet12 import SMALL as SMALL_EPISODES
from edgevis.provenance import read_provenance
from edgevis.train import main
from edgevis.training.checkpoint import TrainingState, read_state, read_training_state, write_state
from edgevis.training.loop import evaluated
from edgevis.training.publish import main as publish
from edgevis.training.tasks import classify, few_shot_segment
from edgevis.training.tasks.classify import nearest_prototype
from edgevis.training.tasks.segment import Example, fitted, flipped
from edgevis.training.views import (
    color_jitter,
    random_crop,
    random_erasing,
    random_horizontal_flip,
    random_resized_crop,
)
from export.build import main as build
from runtime.bundle.spec import Preprocess
from runtime.errors import InputError, SchemaError, WeightsError
from runtime.images.preprocess import Preprocessor

from bundles import python_environment
from training_data import write_classes, write_masks, write_persons

pytestmark = pytest.mark.torch

SMALL_ENET = ["enet", "--recipe", "small", "--option", "side=32", "--set", "batch=2", "--set", "steps_per_epoch=3"]


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masks(tmp_path_factory.mktemp("masks"))


def trained(*arguments: object) -> None:
    assert main([*map(str, arguments), "--quiet"]) == 0


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def write_six_classes(folder: Path) -> Path:
    return write_masks(folder, images=72, classes=6)


@pytest.mark.parametrize("side", [1000, 12])
def test_the_first_pictures_size_decides_nothing(side: int, tmp_path: Path) -> None:
    data = write_six_classes(tmp_path / "data")
    recipe = models.entry("hsnet-hm").recipes["small"].with_values({"test_shots": [1]})
    deployment = models.entry("hsnet-hm").deployment
    usual = few_shot_segment.training_task(data, recipe, deployment, options={}, seed=0).data
    for folder in ("images", "masks"):
        path = str(data / folder / "000.png")
        picture = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        cv2.imwrite(path, cv2.resize(picture, (side, side), interpolation=cv2.INTER_NEAREST))
    assert few_shot_segment.training_task(data, recipe, deployment, options={}, seed=0).data == usual


def test_classes_that_no_image_shows_enough_of(tmp_path: Path) -> None:
    data = write_six_classes(tmp_path / "data")
    for path in (data / "masks").iterdir():
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        mask[1:] = 0
        mask[0, :4] = 1
        cv2.imwrite(str(path), mask)
    recipe = models.entry("hsnet-hm").recipes["small"].with_values({"test_shots": [1]})
    deployment = models.entry("hsnet-hm").deployment
    with pytest.raises(InputError, match=r"0 classes of which 2 or more images of each split show 0\.01 of its pixels"):
        few_shot_segment.training_task(data, recipe, deployment, options={}, seed=0)


# --- every task


@pytest.mark.parametrize(
    ("model", "write", "settings", "figure", "picture"),
    [
        (
            "mobilenetv2",
            write_classes,
            ["way=3", "query=2", "episodes_per_step=1", "held_out=0.3", "test_way=2", "test_query=3"],
            "2-way 1-shot",
            "episode",
        ),
        ("osnet-x0-25", write_persons, ["identities=4", "images=2", "held_out=0.3"], "mAP", "neighbours"),
        ("enet", write_masks, ["batch=2"], "Dice", "masks"),
        (
            "hsnet-hm",
            write_six_classes,
            ["batch=2", "test_shots=[1]"],
            "1-shot mIoU",
            "1-shot",
        ),
    ],
)
def test_every_task_trains_evaluates_and_draws(
    model: str, write: Any, settings: list[str], figure: str, picture: str, tmp_path: Path
) -> None:
    data, output = write(tmp_path / "data"), tmp_path / "run"
    options = {"enet": ["side=32"], "hsnet-hm": ["side=65", "width=4"]}.get(model, [])
    common = ["epochs=2", "steps_per_epoch=2", *(["test_episodes=4"] if model in ("mobilenetv2", "hsnet-hm") else [])]
    trained(
        model, "--recipe", "small", "--data", data, "--output", output,
        *(part for value in (*common, *settings) for part in ("--set", value)),
        *(part for value in options for part in ("--option", value)),
    )  # fmt: skip
    report = json.loads((output / "report.json").read_text())
    assert 0 <= report["evaluation"]["figures"][figure]["value"] <= 1
    assert report["epochs"] == len(rows(output)) == 2
    assert cv2.imread(str(output / f"{picture}.png")) is not None
    assert list(output.glob("events.out.tfevents.*"))
    provenance = read_provenance(output / "best.safetensors")
    assert provenance is not None
    assert (provenance.model, provenance.epoch in (1, 2)) == (model, True)
    models.load_weights(models.create(model, **provenance.options), output / "best.safetensors")


@pytest.mark.parametrize(
    ("model", "write", "settings"),
    [
        ("afl-net", write_classes, ["way=2", "query=2", "episodes_per_step=1", "test_episodes=2", "test_query=2"]),
        ("osnet-x0-25", write_persons, ["identities=2", "images=2"]),
        ("enet", write_masks, ["batch=2"]),
        ("hsnet-hm", write_six_classes, ["batch=2", "test_shots=[1]", "test_episodes=2"]),
    ],
)
def test_losses_are_of_float32_in_mixed_precision(model: str, write: Any, settings: list[str], tmp_path: Path) -> None:
    options = {"enet": ["side=32"], "hsnet-hm": ["side=65", "width=4"]}.get(model, [])
    trained(
        model, "--recipe", "small", "--data", write(tmp_path / "data"), "--output", tmp_path / "run",
        "--precision", "bf16-mixed",
        *(part for value in ("epochs=1", "steps_per_epoch=2", *settings) for part in ("--set", value)),
        *(part for value in options for part in ("--option", value)),
    )  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "--precision bf16-mixed" in report["command"]
    assert np.isfinite(float(rows(tmp_path / "run")[-1]["loss"]))


def test_mixed_tasks_draw_base_classes_too(tmp_path: Path) -> None:
    """Half of a base class's images trained: fewer are left to ask about, and the class must not drop out for that."""
    entry = models.entry("resnet12")
    recipe = replace(
        SMALL_EPISODES, mixed=True, held_out=0.0, way=2, query=2, test_way=2, test_query=7, test_episodes=20
    )
    data = write_classes(tmp_path / "data")  # 12 images of each class: 7 queries beside 5 shots, of a half 1
    task = classify.training_task(data, recipe, entry.deployment, options={}, seed=0)
    assert (task.data["novel classes"], task.data["mixed classes"]) == (2, 4)
    found = evaluated(models.create("resnet12", num_classes=6), task.test)
    assert found is not None
    assert list(found.figures) == [f"{kind}2-way {shot}-shot" for kind in ("", "mixed ") for shot in (1, 5)]
    with pytest.raises(InputError, match="0 classes have 51 images or more"):  # before training, not after it
        classify.training_task(data, replace(recipe, test_query=50), entry.deployment, options={}, seed=0)
    queries = {shot: task._test_sampler(task._split.mixed, shot, 0, whole=True).query for shot in (1, 5)}
    assert queries == {1: 5, 5: 1}


def test_a_build_takes_the_options_that_the_weights_were_trained_with(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(*SMALL_ENET, "--data", masks, "--output", tmp_path / "run", "--set", "epochs=1")
    weights = str(tmp_path / "run" / "best.safetensors")
    bundle = tmp_path / "enet.edgevis"
    command = ["--target", "cpu", "--precision", "fp32", "--quiet", "--output", str(bundle), "--checkpoint", weights]
    assert build(["--model", "enet", *command]) == 0
    with Predictor(bundle) as predictor:
        assert predictor.predict(np.zeros((40, 50, 3), np.uint8)).mask.shape == (40, 50)
    assert json.loads((bundle / "manifest.json").read_text())["deployment"]["preprocess"]["height"] == 32
    assert json.loads((bundle / "manifest.json").read_text())["options"]["side"] == 32
    assert build(["--model", "residual-unet", *command]) == 1
    assert "holds weights of 'enet', not of 'residual-unet': --model enet" in capsys.readouterr().err


def test_a_model_learns(masks: Path, tmp_path: Path) -> None:
    settings = ["epochs=12", "supervision=masks", "steps_per_epoch=6", "batch=4", "learning_rate=0.005"]
    arguments = [part for value in settings for part in ("--set", value)]
    trained(
        "enet", "--recipe", "small", "--option", "side=32", "--data", masks, "--output", tmp_path / "run", *arguments
    )
    found = rows(tmp_path / "run")
    assert float(found[-1]["loss"]) < 0.5 * float(found[0]["loss"])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["evaluation"]["figures"]["Dice"]["value"] > 0.7


# --- going on


def test_a_resumed_training_is_an_unbroken_one(masks: Path, tmp_path: Path) -> None:
    """Batch norm, dropout, Adam's moments, the schedule, the batches: all go on where they were."""
    arguments = [*SMALL_ENET, "--data", str(masks), "--set", "epochs=4"]
    trained(*arguments, "--output", tmp_path / "whole")
    command = [sys.executable, "-m", "edgevis.train", *arguments, "--output", str(tmp_path / "broken"), "--resume"]
    for epochs in (1, 3):
        with started(command) as process:
            wait_for_epoch(process, tmp_path / "broken", epochs)
            process.kill()
            process.communicate(timeout=30)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "goes on after epoch" in done.stdout
    assert (tmp_path / "broken" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()
    for name in ("best.safetensors", "last.safetensors"):
        whole, broken = load_file(tmp_path / "whole" / name), load_file(tmp_path / "broken" / name)
        assert whole.keys() == broken.keys()
        assert all(torch.equal(tensor, broken[key]) for key, tensor in whole.items())


def environment() -> dict[str, str]:
    # The same order of sums as in this process; processes of one machine meet on its loopback, whatever its name.
    return {**python_environment(), "OMP_NUM_THREADS": str(torch.get_num_threads()), "GLOO_SOCKET_IFNAME": "lo"}


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_epoch(process: subprocess.Popen[str], output: Path, epochs: int) -> None:
    """Until that many epochs are in the checkpoint; every state in which it is seen is a whole one."""
    while process.poll() is None:
        if (output / "last.safetensors").exists() and read_training_state(output / "last.safetensors").epochs >= epochs:
            return
        time.sleep(0.01)
    assert process.returncode == 0, process.communicate()[1]


def test_ctrl_c_keeps_the_last_epoch(masks: Path, tmp_path: Path) -> None:
    # As from a terminal: what a shell starts in the background inherits that SIGINT is ignored.
    listening = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from edgevis.train import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", listening, *SMALL_ENET, "--data", str(masks), "--set", "epochs=1000"]
    command += ["--output", str(tmp_path / "run")]
    with started(command) as process:
        wait_for_epoch(process, tmp_path / "run", 1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted: the same command with --resume goes on after the last whole epoch"
    assert read_training_state(tmp_path / "run" / "last.safetensors").epochs >= 1


def test_a_full_disk_keeps_the_last_checkpoint(masks: Path, tmp_path: Path) -> None:
    arguments = [*SMALL_ENET, "--data", str(masks), "--output", str(tmp_path / "run"), "--set", "epochs=3"]
    trained(*arguments[:-1], "epochs=3", "--set", "validate_every=0")
    whole = (tmp_path / "run" / "last.safetensors").read_bytes()
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from edgevis.train import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        sys.executable,
        "-c",
        limited,
        *arguments,
        "--set",
        "validate_every=0",
        "--output",
        str(tmp_path / "full"),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "File too large" in done.stderr
    assert not list((tmp_path / "full").glob("*.safetensors"))
    assert not [name for name in os.listdir(tmp_path / "full") if name.startswith(".")]
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == whole


def test_a_training_that_was_begun_is_not_overwritten(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL_ENET, "--data", str(masks), "--output", str(tmp_path / "run"), "--set", "epochs=1", "--quiet"]
    assert main(arguments) == 0
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert main(arguments) == 1
    assert "go on with --resume, or name another --output" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--seed", "1"]) == 1
    assert "is of another training: seed was 0, is 1" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--set", "learning_rate=0.5"]) == 1
    assert "is of another training: recipe.learning_rate was" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_two_processes_train_one_model(masks: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgevis.train", *SMALL_ENET, "--data", str(masks), "--set", "epochs=2"]
    command += ["--output", str(tmp_path / "run"), "--accelerator", "cpu", "--devices", "2", "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 2
    assert len(rows(tmp_path / "run")) == 2


# --- what can be wrong


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
        (["osnet-x0-25", "--recipe", "small"], "has neither labels.csv nor bounding_box_train/"),
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
    assert "num_identities is 2; allowed: 7, as the data have, or leave it out" in capsys.readouterr().err


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


# --- recipes


def test_learning_rates() -> None:
    step = EpisodeRecipe(
        loss="local", epochs=10, learning_rate=1.0, schedule="step", milestones=(4, 8), warm_up_epochs=2
    )
    assert [round(step.rate(epoch), 6) for epoch in (0, 1, 2, 3.9, 4, 8)] == [0.1, 0.55, 1.0, 1.0, 0.1, 0.01]
    cosine = SegmentationRecipe(supervision="boxes", epochs=10, learning_rate=2.0, schedule="cosine")
    assert [round(cosine.rate(epoch), 6) for epoch in (0, 5, 10)] == [2.0, 1.0, 0.0]


def test_recipes_of_the_papers() -> None:
    afl = models.entry("afl-net").recipes["paper"]
    assert (afl.epochs, afl.steps_per_epoch, afl.learning_rate, afl.milestones) == (100, 200, 0.1, (60, 90))
    epri = models.entry("epri-net").recipes["paper"]
    assert (epri.epochs, epri.optimizer, epri.warm_up_epochs) == (120, "adam", 20)
    assert [epri.rate(epoch) for epoch in (0, 20, 60, 90)] == pytest.approx([3.5e-6, 3.5e-5, 3.5e-6, 3.5e-7])
    assert models.entry("hsnet-hm").recipes["paper"].batch == 20  # type: ignore[attr-defined]


# --- parts


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 2), nn.Linear(4, 2)
    adam = torch.optim.Adam(first.parameters())
    first(torch.ones(1, 3)).sum().backward()
    adam.step()
    write_state(tmp_path / "s.safetensors", {"model": first}, adam, TrainingState({}, 1, 0.5, None, ()))
    again = nn.Linear(3, 2)
    other = torch.optim.Adam(again.parameters())
    read_state(tmp_path / "s.safetensors", {"model": again}, other)
    assert torch.equal(again.weight, first.weight)
    assert torch.equal(other.state_dict()["state"][0]["exp_avg"], adam.state_dict()["state"][0]["exp_avg"])
    with pytest.raises(WeightsError, match="is of another model"):
        read_state(tmp_path / "s.safetensors", {"model": second}, torch.optim.Adam(second.parameters()))
    with pytest.raises(WeightsError, match="no part of this training"):
        read_state(tmp_path / "s.safetensors", {"other": again}, other)
    (tmp_path / "broken.safetensors").write_bytes(b"{}")
    with pytest.raises(WeightsError, match="cannot read"):
        read_training_state(tmp_path / "broken.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="is no checkpoint of a training"):
        read_training_state(tmp_path / "plain.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "old.safetensors", {"edgevis": '{"progress": {}, "optimizer": {}}'})
    with pytest.raises(SchemaError, match=r"of edgevis 0\.1"):
        read_training_state(tmp_path / "old.safetensors")
    assert read_provenance(tmp_path / "plain.safetensors") is None


def test_views_are_drawn_from_the_position_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)

    def view(seed: int) -> np.ndarray[Any, Any]:
        draw = draw_at(seed)
        made = color_jitter(
            random_horizontal_flip(random_resized_crop(image, draw, height=32, width=16, least=0.4), draw),
            draw,
            strength=0.3,
        )
        return random_erasing(random_crop(made, draw, pad=3), draw, chance=1.0)

    assert view(1).shape == (32, 16, 3)
    assert np.array_equal(view(1), view(1))
    assert not np.array_equal(view(1), view(2))
    assert np.array_equal(random_resized_crop(image, draw_at(0), height=60, width=40, least=1.0), image)
    assert color_jitter(image, draw_at(0), strength=0.0) is image


def test_boxes_follow_their_image() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:8, 6:18] = True
    example = Example(np.zeros((20, 30, 3), np.uint8), mask, np.array([[6, 4, 17, 7]]))
    larger = fitted(example, Preprocessor(Preprocess(40, 60)))
    assert larger.boxes.tolist() == [[12, 8, 35, 15]]
    for columns, both in ((True, False), (False, True), (True, True)):
        turned = flipped(larger, columns=columns, rows=both)
        x1, y1, x2, y2 = turned.boxes[0]
        assert turned.mask[y1 : y2 + 1, x1 : x2 + 1].all()
        assert turned.mask.sum() == (y2 - y1 + 1) * (x2 - x1 + 1)
    assert fitted(example, Preprocessor(Preprocess(2, 3))).boxes.tolist() == [[1, 0, 1, 0]]


def test_answers_are_the_nearest_prototypes() -> None:
    learned = np.eye(3, dtype=np.float32)[:, None]
    asked = np.eye(3, dtype=np.float32)[[[0, 1], [1, 1], [2, 0]]]
    assert nearest_prototype(learned, asked).tolist() == [[0, 1], [1, 1], [2, 0]]
    learned[2] = learned[1]
    assert nearest_prototype(learned, asked).tolist() == [[0, -1], [-1, -1], [-1, 0]], "equally near is no answer"


# --- publishing


def test_published_weights_are_half_as_large_and_say_where_they_come_from(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zipped, for a folder has no hash: a file that the sources do not name is refused, and nothing is written."""
    data = Path(shutil.make_archive(str(tmp_path / "masks"), "zip", masks))
    trained(
        *SMALL_ENET, "--data", data, "--output", tmp_path / "run", "--set", "epochs=2", "--set", "supervision=masks"
    )
    sources, output = tmp_path / "sources.json", tmp_path / "out" / "enet.safetensors"
    arguments = [str(tmp_path / "run"), "--data", str(data), "--sources", str(sources), "--output", str(output)]
    sources.write_text('[{"name": "another", "sha256": "00"}]')
    assert publish([*arguments]) == 1
    assert "the sources do not name the training's data, masks.zip" in capsys.readouterr().err
    assert not output.exists()
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    sources.write_text(json.dumps([{"name": "drawn masks", "licence": "CC0-1.0", "sha256": digest}]))
    assert publish(arguments) == 0
    said = json.loads(output.with_suffix(".json").read_text())
    assert said["command"].startswith("python -m edgevis.train enet --data masks.zip --recipe small")
    assert said["file"]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert output.stat().st_size < 0.6 * (tmp_path / "run" / "best.safetensors").stat().st_size
    before = json.loads((tmp_path / "run" / "report.json").read_text())["evaluation"]["figures"]["Dice"]["value"]
    assert said["evaluation"]["figures"]["Dice"]["value"] == pytest.approx(before, abs=0.02)
    provenance = read_provenance(output)
    assert provenance is not None
    models.load_weights(models.create("enet", **provenance.options), output)


def test_no_epochs_evaluate_what_a_training_begins_with(masks: Path, tmp_path: Path) -> None:
    trained(*SMALL_ENET, "--data", masks, "--output", tmp_path / "run", "--set", "epochs=1")
    best = tmp_path / "run" / "best.safetensors"
    trained(*SMALL_ENET, "--data", masks, "--output", tmp_path / "same", "--set", "epochs=0", "--weights", best)
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("run", "same")]
    assert reports[0]["evaluation"] == reports[1]["evaluation"]
    assert [report["epochs"] for report in reports] == [1, 0]
    samples = json.loads((tmp_path / "same" / "samples.json").read_text())
    assert np.mean(samples["Dice"]) == pytest.approx(reports[1]["evaluation"]["figures"]["Dice"]["value"])
