"""``python -m edgevis.train --teacher``: what is taught is learned, and what does not fit is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgevis import models
from edgevis.provenance import read_provenance
from edgevis.train import main
from edgevis.training.episodes import EpisodeTrainingTask
from edgevis.training.progress import StepProgress
from edgevis.training.request import TrainingRequest
from edgevis.training.run import train
from edgevis.training.task import TaskRequest
from edgevis.training.tasks.classify import training_task
from edgevis.training.teacher import Teacher, open_teacher
from runtime.bundle.bundle import sha256
from runtime.errors import InputError
from runtime.images.preprocess import Preprocessor

from training_data import write_classes, write_masks, write_persons

# What its fixtures build, one worker builds.
pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("train_teacher")]

PERSONS = {"epochs": 2, "steps_per_epoch": 2, "identities": 2, "images": 2, "warm_up_epochs": 0, "validate_every": 0}
CLASSES = {
    "epochs": 1, "steps_per_epoch": 1, "way": 2, "query": 1, "episodes_per_step": 1, "held_out": 0, "warm_up_epochs": 0,
    "validate_every": 0, "test_way": 2, "test_query": 2, "test_episodes": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_persons(tmp_path_factory.mktemp("data") / "persons")


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("data") / "classes")


@pytest.fixture(scope="module")
def taught_teacher(persons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Re-ID weights that say on which persons they were trained."""
    return trained("osnet-x0-25", persons, tmp_path_factory.mktemp("teacher"), PERSONS) / "best.safetensors"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few-shot weights as others publish them."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "resnet12.safetensors"
    save_file(models.create("resnet12").state_dict(), path)
    return path


def command(model: str, data: Path, output: Path, values: Mapping[str, Any], *more: object) -> list[str]:
    settings = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    return [model, "--recipe", "small", "--data", str(data), "--output", str(output), *settings, *map(str, more)]


def trained(model: str, data: Path, output: Path, values: Mapping[str, Any], *more: object) -> Path:
    assert main([*command(model, data, output, values, *more), "--quiet"]) == 0
    return output


def column(folder: Path, name: str) -> list[float]:
    with (folder / "log.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


# --- what is taught is learned


def test_a_student_comes_to_point_where_its_teacher_does(persons: Path, tmp_path: Path) -> None:
    """The weights that ship with a model teach, without a file being named."""
    plain = {"erase": 0, "jitter": 0, "pad": 0, "alpha": 0.1, "triplet_weight": 0.1}
    values = {**PERSONS, **plain, "epochs": 3, "steps_per_epoch": 6, "learning_rate": 0.05}
    output = trained("osnet-x0-25", persons, tmp_path / "run", values, "--teacher-model", "osnet-x0-25")
    found = column(output, "distill embedding")
    assert found[-1] < 0.9 * found[0]
    assert "distill logits" not in (output / "log.csv").read_text()
    report = json.loads((output / "report.json").read_text())
    assert report["files"]["teacher"]["name"] == "osnet-x0-25.safetensors"
    assert "--teacher-model osnet-x0-25" in report["command"]
    teacher = report["teacher"]
    assert teacher == {
        "model": "osnet-x0-25",
        "options": {},
        "sha256": "e42b724e4d49fb3bc9d8686164c1e6c67a2e5dbc1fd2f6216268952edd36abe0",
    }
    provenance = read_provenance(output / "best.safetensors")
    assert provenance is not None
    assert provenance.teacher == teacher
    student = models.create("osnet-x0-25", **provenance.options)
    models.load_weights(student, output / "best.safetensors")  # nothing of the teacher is in it


def test_logits(persons: Path, taught_teacher: Path, tmp_path: Path) -> None:
    """Each of two branches learns from a teacher with one."""
    values = {**PERSONS, "epochs": 1, "steps_per_epoch": 1, "distill_logits": 0.5, "distill_embedding": 0}
    output = trained("epri-net", persons, tmp_path / "run", values, "--teacher", taught_teacher)
    assert column(output, "distill logits")[0] > 0
    assert "distill embedding" not in (output / "log.csv").read_text()


def test_logits_fall(persons: Path, taught_teacher: Path, tmp_path: Path) -> None:
    """Where the teacher counts more than the labels, which it hardly knows."""
    plain = {"erase": 0, "jitter": 0, "pad": 0, "triplet_weight": 0.1, "distill_logits": 100}
    values = {**PERSONS, **plain, "epochs": 4, "steps_per_epoch": 6}
    output = trained("osnet-x0-25", persons, tmp_path / "run", values, "--teacher", taught_teacher)
    losses = column(output, "distill logits")
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("loss", ["local", "global"])
def test_a_teacher_of_another_width_and_input_size(loss: str, classes: Path, encoder: Path, tmp_path: Path) -> None:
    values = {**CLASSES, "loss": loss}
    more = ("--teacher", encoder, "--teacher-model", "resnet12")
    output = trained("mobilenetv2", classes, tmp_path / "run", values, *more)
    assert 0 < column(output, "distill embedding")[0] < 2
    last = load_file(output / "last.safetensors")
    assert last["criterion/distillation.map.weight"].shape == (512, 1280)
    assert not [name for name in last if "layer" in name], "nothing of the teacher is in it"


def test_fusion_learns_from_a_network_of_one_branch(classes: Path, tmp_path: Path) -> None:
    weights = trained("resnet12", classes, tmp_path / "teacher", CLASSES) / "best.safetensors"
    values = {**CLASSES, "distill_logits": 1}
    output = trained("afl-net", classes, tmp_path / "run", values, "--teacher", weights)
    assert column(output, "distill embedding")[0] > 0
    assert column(output, "distill logits")[0] > 0


def test_networks_of_one_and_two_branches_are_asked_for_the_same(classes: Path) -> None:
    image = torch.zeros(2, 3, 84, 84)
    entry = models.entry("resnet12")
    recipe = entry.recipes["small"].with_values({**CLASSES, "loss": "global"})
    task: EpisodeTrainingTask = training_task(TaskRequest(classes, recipe, entry.deployment))
    for name, width in (("resnet12", 512), ("afl-net", 1024)):
        outputs = task.outputs(models.create(name, num_classes=3), image, logits=True)
        assert (outputs.embedding.shape, [tuple(x.shape) for x in outputs.logits]) == ((2, width), [(2, 3)])


def test_the_teacher_sees_the_views_of_the_student() -> None:
    small, large = models.entry("osnet-x0-25"), models.entry("epri-net-baseline")
    images = list(np.random.default_rng(0).integers(0, 256, (2, 256, 128, 3), np.uint8))

    def made(entry: models.ModelEntry) -> Teacher:
        module = models.module_from(entry).train()
        return Teacher(module, entry.deployment, student=small.deployment, identity={}, provenance=None)

    larger = made(large)
    assert not larger.model.training
    assert not [parameter for parameter in larger.model.parameters() if parameter.requires_grad]
    seen = larger.image(images)
    assert seen is not None
    assert seen.shape == (2, 3, 384, 192)
    assert np.array_equal(seen.numpy(), Preprocessor(large.deployment.preprocess)(images))
    assert made(small).image(images) is None, "it takes the student's tensor"


# --- going on


class StoppedError(Exception):
    pass


class Stops:
    """A listener that leaves a training after one of its epochs, as a kill would."""

    def __init__(self, after: int) -> None:
        self.after = after

    def stage(self, what: str, done: int, total: int) -> None: ...

    def step(self, progress: StepProgress) -> None: ...

    def epoch(self, row: Mapping[str, float], epochs: int, seconds: float, left_s: float) -> None:
        if row["epoch"] == self.after:
            raise StoppedError

    def note(self, message: str) -> None: ...


def test_a_resumed_training_with_a_teacher_is_an_unbroken_one(
    persons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learned map and its moments go on where they were; another teacher is refused."""
    teachers = [tmp_path / "teacher.safetensors", tmp_path / "other.safetensors"]
    for path in teachers:
        save_file(models.create("epri-net-baseline").state_dict(), path)
    values = {**PERSONS, "epochs": 3, "steps_per_epoch": 1}
    name = "epri-net-baseline"
    more = ("--teacher", teachers[0], "--teacher-model", name)
    trained("osnet-x0-25", persons, tmp_path / "whole", values, *more)
    request = TrainingRequest(
        "osnet-x0-25", persons, tmp_path / "broken", "small", values, teacher=teachers[0], teacher_model=name
    )
    with pytest.raises(StoppedError):
        train(request, Stops(after=2))
    trained("osnet-x0-25", persons, tmp_path / "broken", values, *more, "--resume")
    assert (tmp_path / "broken" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()
    for file in ("best.safetensors", "last.safetensors"):
        whole, broken = load_file(tmp_path / "whole" / file), load_file(tmp_path / "broken" / file)
        assert whole.keys() == broken.keys()
        assert all(torch.equal(tensor, broken[key]) for key, tensor in whole.items())
    assert load_file(tmp_path / "broken" / "last.safetensors")["criterion/distillation.map.weight"].shape == (1280, 512)
    again = command("osnet-x0-25", persons, tmp_path / "broken", values, "--resume", "--quiet")
    for teacher in ([], ["--teacher", str(teachers[1]), "--teacher-model", name]):
        assert main([*again, *teacher]) == 1
        message = capsys.readouterr().err
        assert "is of another training: teacher" in message
        assert sha256(teachers[0]) in message


# --- what can be wrong


def test_teachers_that_do_not_fit(
    persons: Path, classes: Path, encoder: Path, taught_teacher: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    masks = write_masks(tmp_path / "masks")
    logits = ["--set", "distill_logits=1"]
    resnet = ["--teacher", encoder, "--teacher-model", "resnet12"]
    cases: list[tuple[str, Path, list[object], str]] = [
        ("enet", masks, resnet, "the task 'segment' does not learn from a teacher; allowed: few-shot classification"),
        ("osnet-x0-25", persons, resnet, "'resnet12' is a model for the task 'classify'; allowed: 'reid'"),
        ("osnet-x0-25", persons, ["--teacher", encoder], "does not say of which model it is; add --teacher-model NAME"),
        ("osnet-x0-25", persons, ["--teacher", "no.safetensors", *resnet[2:]], "cannot read no.safetensors"),
        ("osnet-x0-25", persons, ["--teacher-model", "epri-net"], "no weights of 'epri-net' ship with edgevis"),
        ("osnet-x0-25", persons, ["--teacher-model", "nonesuch"], "no model 'nonesuch'"),
        (
            "osnet-x0-25", persons, ["--teacher", taught_teacher, "--teacher-model", "epri-net"],
            "holds weights of 'osnet-x0-25', not of 'epri-net': leave --teacher-model out",
        ),
        (
            "resnet12", classes, [*resnet, "--set", "distill_embedding=0"],
            "distill_embedding and distill_logits are both 0, so that a teacher teaches nothing",
        ),
        (
            "resnet12", classes, [*resnet, *logits],
            "distill_logits is 1, but the teacher's weights do not say on which classes it was trained",
        ),
        (
            "resnet12", classes, [*resnet, *logits, "--set", "loss=local"],
            "distill_logits is 1 with the loss 'local', which has no logits",
        ),
        (
            "osnet-x0-25", persons, ["--teacher", taught_teacher, *logits, "--seed", 1],
            "the teacher was trained on other classes: its seed is 0, this training's is 1; allowed: a teacher of the",
        ),
        (
            "osnet-x0-25", persons, ["--teacher", taught_teacher, *logits, "--set", "held_out=0.5"],
            "trained on other classes: its data's 'training images' is 24, this training's is 16",
        ),
        ("osnet-x0-25", persons, ["--set", "temperature=0"], "temperature is 0; allowed: a number above 0"),
    ]  # fmt: skip
    for model, data, more, message in cases:
        values = {"test_query": 5} if model == "resnet12" else {}  # of 12 images in a class
        assert main([*command(model, data, tmp_path / "run", values, *more), "--quiet"]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_a_request_without_a_teacher_opens_none() -> None:
    entry = models.entry("osnet-x0-25")
    with pytest.raises(InputError, match="there is no teacher"):
        open_teacher(None, None, student=entry.deployment)


def test_published_weights_may_have_heads_or_none(tmp_path: Path) -> None:
    entry = models.entry("epri-net-baseline")
    module = models.module_from(entry, {"num_identities": 5})
    heads = {"classifier.weight": nn.Linear(1280, 9, bias=False).weight.detach()}
    for number, other in enumerate((heads, {})):
        tensors = {name: x for name, x in module.state_dict().items() if not name.startswith(entry.classifier)}
        save_file({**tensors, **other}, tmp_path / f"{number}.safetensors")
        found = open_teacher(tmp_path / f"{number}.safetensors", entry.name, student=entry.deployment)
        assert all(torch.equal(found.model.state_dict()[name], tensor) for name, tensor in tensors.items())
