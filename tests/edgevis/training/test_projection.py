"""Training a projection of a frozen encoder: where it begins, what it changes, what it keeps, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgevis import models
from edgevis.models.recipe_projection import ProjectionRecipe
from edgevis.provenance import read_provenance
from edgevis.train import main
from edgevis.training.projection import ProjectionLoss, whitening

from training_data import write_classes
from training_runs import rows, trained

pytestmark = pytest.mark.torch

VALUES = (
    *("dimension=8", "views=1", "way=4", "query=2", "epochs=2", "steps_per_epoch=3", "held_out=0.3"),
    *("test_way=2", "test_query=2", "test_episodes=10", "test_shots=[1,3]"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes"), classes=10, images=6, side=64)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as they are published: with a classifier and no projection."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(models.create("efficientnet-lite0", num_classes=3).state_dict(), path)
    return path


def arguments(data: Path, output: Path, *values: str) -> list[str]:
    sets = [part for value in (*VALUES, *values) for part in ("--set", value)]
    options = ["--option", "side=64", "--option", "power_percent=50"]
    command = ["efficientnet-lite0", "--recipe", "general", *options, "--data", str(data)]
    return [*command, "--output", str(output), *sets]


def test_whitening_makes_classes_round() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(600) % 6
    scales = np.array([4.0, 1.0, 0.25, 1e-4])
    points = 3 * random.standard_normal((6, 4))[labels] + scales * random.standard_normal((600, 4))
    weight, bias = whitening(points, labels, parts=(2, 2), shrink=1e-3, dimension=3)
    assert (weight.shape, bias.shape, weight.dtype) == ((3, 4), (3,), np.float32)
    found = points @ weight.T + bias
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    assert found.var(0).sum() == pytest.approx(1, rel=1e-3)
    within = found - np.stack([found[labels == label].mean(0) for label in range(6)])[labels]
    spread = np.linalg.eigvalsh(within.T @ within)
    assert spread[2] / spread[1] < 1.2, "as wide in both directions, which were 4 and 1 wide"
    assert spread[0] < 1e-3 * spread[1], "but a direction that hardly varied is not blown up"
    weight, _ = whitening(points, labels, parts=(4,), shrink=1.0, dimension=6)
    assert not weight[4:].any()


def test_what_is_kept_lies_between_start_and_learned() -> None:
    recipe = models.entry("efficientnet-lite0").recipes["general"].with_values({"dimension": 5, "share": 0.25})
    assert isinstance(recipe, ProjectionRecipe)
    loss, projection = ProjectionLoss(recipe, ["a", "a", "b"]), nn.Linear(1984, 5)
    nn.init.normal_(loss.start_weight)
    pooled = torch.rand(4, 1984)
    learned, start = loss.learned(projection, pooled), pooled @ loss.start_weight.T + loss.start_bias
    torch.testing.assert_close(projection(pooled), 0.25 * learned + 0.75 * start, rtol=1e-4, atol=1e-4)


def test_classes_of_another_set_do_not_count() -> None:
    recipe = models.entry("efficientnet-lite0").recipes["general"].with_values({"dimension": 2, "dropout": 0.0})
    assert isinstance(recipe, ProjectionRecipe)
    images = recipe.shot + recipe.query

    def terms(sets: list[str]) -> dict[str, float]:
        loss, projection = ProjectionLoss(recipe, sets), nn.Linear(1984, 2, bias=False)
        projection.bias = nn.Parameter(torch.zeros(2))
        nn.init.eye_(projection.weight)
        with torch.no_grad():
            loss.start_weight.copy_(projection.weight)
            loss.classes.copy_(torch.eye(2)[[0, 0]])  # the same class twice, but for its set
        pooled = torch.zeros(2 * images, 1984)
        pooled[:, 0] = 1
        found = loss(projection, pooled, torch.arange(2).repeat_interleave(images))
        return {name: term.item() for name, term in found.items()}

    one, two = terms(["a", "a"]), terms(["a", "b"])
    assert one == {"episodes": pytest.approx(np.log(2)), "classifier": pytest.approx(np.log(2))}
    assert two == {"episodes": pytest.approx(0), "classifier": pytest.approx(0)}


def test_it_trains_the_projection_alone(data: Path, published: Path, tmp_path: Path) -> None:
    trained(*arguments(data, tmp_path / "run"), "--weights", published)
    best = tmp_path / "run" / "best.safetensors"
    provenance = read_provenance(best)
    assert provenance is not None
    assert provenance.options == {"side": 64, "power_percent": 50, "num_classes": 0, "embedding": 8}
    before, after = load_file(published), load_file(best)
    assert set(after) == {name for name in before if not name.startswith("classifier.")} | {
        "projection.weight",
        "projection.bias",
        "power",
    }
    assert all(torch.equal(before[name], after[name]) for name in after if name in before)
    assert len(rows(tmp_path / "run")) == 2
    figures = json.loads((tmp_path / "run" / "report.json").read_text())["evaluation"]["figures"]
    assert list(figures) == ["2-way 1-shot", "2-way 3-shot"]
    # Further pictures go on from there, with the options of the weights.
    quick = [
        "efficientnet-lite0",
        "--recipe",
        "quick",
        "--data",
        data,
        "--weights",
        best,
        "--output",
        tmp_path / "quick",
    ]
    trained(*quick, *(part for value in (*VALUES, "epochs=1") for part in ("--set", value)))
    further = load_file(tmp_path / "quick" / "best.safetensors")
    assert float(further["power"]) == 0.5
    moved = float(
        (further["projection.weight"] - after["projection.weight"]).norm() / after["projection.weight"].norm()
    )
    assert 0 < moved < 0.1
    # An interrupted training goes on as an unbroken one.
    half = ("schedule=constant", "epochs=1")
    trained(*arguments(data, tmp_path / "half", *half), "--weights", published)
    trained(*arguments(data, tmp_path / "half", *half), "--epochs", "2", "--resume", "--weights", published)
    trained(*arguments(data, tmp_path / "whole", "schedule=constant"), "--weights", published)
    names = [tmp_path / name / "last.safetensors" for name in ("half", "whole")]
    halved, whole = map(load_file, names)
    assert set(halved) == set(whole)
    assert all(torch.equal(halved[name], tensor) for name, tensor in whole.items())


def test_what_it_refuses(data: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ["--weights", str(published)]
    assert main([*arguments(data, tmp_path / "a", "held_out=0"), *start]) == 1
    assert "has no part that validates, so that nothing would say" in capsys.readouterr().err
    assert main([*arguments(data, tmp_path / "b", "whiten=false"), *start]) == 1
    assert "has no projection, and the recipe goes on with one to 8" in capsys.readouterr().err
    assert main([*arguments(data, tmp_path / "c"), *start, "--teacher", str(published)]) == 1
    assert "distill_embedding and distill_logits are both 0" in capsys.readouterr().err
