"""Recipes of similarity distillation: batches, figures and a training small enough for a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgevis import models
from edgevis.models.osnet import DEPLOYMENT
from edgevis.models.unlabelled_recipe import SimilarityDistillationRecipe
from edgevis.train import main
from edgevis.training.similarity import SimilarityDistillationTask
from edgevis.training.task import Batch
from edgevis.training.teacher import open_teacher
from runtime.errors import ModelError

from training_data import write_dressed_persons

pytestmark = pytest.mark.torch

RECIPE = SimilarityDistillationRecipe(epochs=1, batch=6, learning_rate=1e-3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dressed_persons(tmp_path_factory.mktemp("photos") / "ccp.zip")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model of another width than the student's."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(models.create("osnet-in-x0-5").state_dict(), path)
    return path


def test_a_batch_has_two_views_of_each_person(photos: Path) -> None:
    task = SimilarityDistillationTask.read(photos, _evaluating(), DEPLOYMENT, None, seed=3)
    first = task.batch(0, 1, 0)["image"]
    assert first.shape == (6, 3, 256, 128)
    assert torch.equal(first, task.batch(0, 1, 0)["image"])
    assert not torch.equal(first, task.batch(0, 2, 0)["image"])
    assert not torch.equal(first[0], first[1])


def test_the_teacher_sees_each_of_so_many_views_once(photos: Path, teacher: Path) -> None:
    opened = open_teacher(teacher, "osnet-in-x0-5", student=DEPLOYMENT)
    task = SimilarityDistillationTask.read(photos, _with(views=8), DEPLOYMENT, opened, seed=0)
    seen = []
    gate = opened.model.get_submodule("in_first")
    gate.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    student, criterion = models.create("osnet-x0-25"), task.criterion()
    epochs = [[task.batch(epoch, step, 0) for step in range(2)] for epoch in range(2)]
    numbers = [sorted({int(pair) for batch in batches for pair in batch["pair"]}) for batches in epochs]
    assert numbers == [[0, 1, 2, 3]] * 2
    images = {int(pair): batch["image"][2 * place] for batch in epochs[0] for place, pair in enumerate(batch["pair"])}
    for batch in (batch for batches in epochs for batch in batches):
        for place, pair in enumerate(batch["pair"].tolist()):
            assert torch.equal(batch["image"][2 * place], images[pair])
        terms = task.loss(student, criterion, batch, 0)
        assert set(terms) == {"pairs", "direction"}
    assert sum(seen) == 8


def test_the_student_learns_the_teachers_similarities(photos: Path, teacher: Path) -> None:
    """The loss of one batch falls, and no weight of the teacher moves."""
    opened = open_teacher(teacher, "osnet-in-x0-5", student=DEPLOYMENT)
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    task = SimilarityDistillationTask.read(photos, RECIPE, DEPLOYMENT, opened, seed=0)
    torch.manual_seed(1)
    student, criterion = models.create("osnet-x0-25").train(), task.criterion()
    optimizer = torch.optim.Adam([*student.parameters(), *criterion.parameters()], lr=1e-3)
    batch, losses = task.batch(0, 0, 0), []
    for _ in range(4):
        terms = task.loss(student, criterion, batch, 0)
        assert set(terms) == {"pairs", "direction"}
        optimizer.zero_grad()
        sum(terms.values(), torch.zeros(())).backward()
        optimizer.step()
        losses.append(sum(float(term.detach()) for term in terms.values()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(tensor, opened.model.state_dict()[name]) for name, tensor in before.items())


def test_the_embedding_is_fitted_to_the_teachers_and_kept_as_it_was(photos: Path, teacher: Path) -> None:
    """The first loss is less than without the fit; the anchor is 0 before the first step and not after one."""
    opened = open_teacher(teacher, "osnet-in-x0-5", student=DEPLOYMENT)
    losses = []
    for fitted in (0, 16):
        recipe = RECIPE.with_values({"views": 16, "fitted_views": fitted, "anchor_weight": 1.0, "frozen_norms": True})
        task = SimilarityDistillationTask.read(photos, recipe, DEPLOYMENT, opened, seed=0)
        torch.manual_seed(1)
        student, criterion, batch = models.create("osnet-x0-25"), task.criterion(), task.batch(0, 0, 0)
        task.begin(student)
        terms = task.loss(student.eval(), criterion, batch, 0)
        assert float(terms["anchor"].detach()) == pytest.approx(0, abs=1e-5)
        losses.append(float((terms["pairs"] + terms["direction"]).detach()))
    assert losses[1] < 0.7 * losses[0]
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-2)
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    assert float(task.loss(student, criterion, batch, 0)["anchor"].detach()) > 1e-5


def test_a_model_without_a_layer_of_the_embedding_is_told(photos: Path, teacher: Path) -> None:
    entry = models.entry("epri-net-baseline")
    student = models.module_from(entry, {"height": 128, "num_identities": 0})
    deployment = models.deployment_of(entry, student)
    opened = open_teacher(teacher, "osnet-in-x0-5", student=deployment)
    task = SimilarityDistillationTask.read(photos, _with(fitted_views=4), deployment, opened, seed=0)
    with pytest.raises(
        ModelError, match=r"this EPRINet has none; allowed: a model with one \(EPRI-Net: --option embed"
    ):
        task.begin(student)


def test_a_training_that_goes_on_is_an_unbroken_one(photos: Path, teacher: Path, tmp_path: Path) -> None:
    """What the loss is anchored to is in no checkpoint: it is made again."""
    names = ("--recipe", "similarity", "--data", str(photos), "--teacher", str(teacher))
    sizes = ("views=8", "fitted_views=8", "steps_per_epoch=1", "batch=4", "validate_every=0")
    words = ["osnet-x0-25", *names, "--teacher-model", "osnet-in-x0-5", "--quiet"]
    words += [word for size in sizes for word in ("--set", size)]
    assert main([*words, "--epochs", "2", "--output", str(tmp_path / "whole")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimilarityDistillationTask, "batch", _stopping_at_the_second(SimilarityDistillationTask.batch))
        assert main([*words, "--epochs", "2", "--output", str(tmp_path / "broken")]) == 130
    assert main([*words, "--epochs", "2", "--output", str(tmp_path / "broken"), "--resume"]) == 0
    whole, broken = (load_file(tmp_path / name / "best.safetensors") for name in ("whole", "broken"))
    for name, tensor in whole.items():
        torch.testing.assert_close(broken[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_correlation_is_that_of_similarities(photos: Path) -> None:
    task = SimilarityDistillationTask.read(photos, _evaluating(), DEPLOYMENT, None, seed=0)
    rows = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    same = task.likeness(rows, np.concatenate([-rows, np.zeros((8, 2), np.float32)], axis=1))["correlation"]
    assert same.value == pytest.approx(1)
    assert len(same.samples) == 4  # persons
    # By NumPy's own function, view by view.
    other = np.roll(rows, 1, axis=0)
    likeness, theirs = rows @ rows.T, other @ other.T
    each = [np.corrcoef(np.delete(likeness[i], i), np.delete(theirs[i], i))[0, 1] for i in range(8)]
    assert task.likeness(rows, other)["correlation"].value == pytest.approx(np.mean(each))


def test_from_the_command_line(photos: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "--set",
        "batch=4",
        "--set",
        "steps_per_epoch=1",
        "--set",
        "views=4",
        "--set",
        "fitted_views=4",
        "--epochs",
        "1",
    ]
    command = [
        "osnet-x0-25",
        "--recipe",
        "similarity",
        "--data",
        str(photos),
        "--output",
        str(tmp_path / "run"),
        *small,
    ]
    assert main([*command, "--quiet"]) == 1
    assert "learns from a teacher alone" in capsys.readouterr().err
    assert main([*command, "--teacher", str(teacher), "--teacher-model", "osnet-in-x0-5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["evaluation"]["figures"]) == ["correlation", "rank-1", "teacher's rank-1"]
    assert report["teacher"]["model"] == "osnet-in-x0-5"
    models.load_weights(models.create("osnet-x0-25"), tmp_path / "run" / "best.safetensors")


def _stopping_at_the_second(batch: Callable[..., Batch]) -> Callable[..., Batch]:
    """The task's batches, but Ctrl+C instead of those of the second epoch."""

    def stopping(task: SimilarityDistillationTask, epoch: int, step: int, rank: int) -> Batch:
        if epoch:
            raise KeyboardInterrupt
        return batch(task, epoch, step, rank)

    return stopping


def _evaluating() -> SimilarityDistillationRecipe:
    return _with(epochs=0)


def _with(**values: int) -> SimilarityDistillationRecipe:
    changed = RECIPE.with_values(values)
    assert isinstance(changed, SimilarityDistillationRecipe)
    return changed
