"""Training of adapted prototypes: the reference's terms, what learns how fast, what is evaluated and refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from edgevis import models
from edgevis.models.feat import FEAT
from edgevis.models.recipe_adaptation import AdaptationRecipe
from edgevis.train import main
from edgevis.training.adaptation import ALONE, adaptation_terms
from edgevis.training.optimizer import optimizer_of, set_rate

from set_to_set_cases import CASES, case_of
from training_data import write_classes
from training_runs import rows, trained

pytestmark = pytest.mark.torch

VALUES = (
    *("way=2", "most_way=4", "query=2", "epochs=2", "steps_per_epoch=3", "held_out=0.3", "schedule=constant"),
    *("test_way=2", "test_query=2", "test_episodes=10", "test_shots=[1,3]"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes"), classes=10, images=6, side=64)


def arguments(data: Path, output: Path, *values: str, recipe: str = "small") -> list[str]:
    known = [value for value in VALUES if recipe != "pretrain" or "most_way" not in value]
    sets = [part for value in (*known, *values) for part in ("--set", value)]
    return ["feat", "--recipe", recipe, "--data", str(data), "--output", str(output), *sets]


@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
@pytest.mark.parametrize("name", CASES)
def test_terms_of_the_reference(name: str, kind: str) -> None:
    case, layer = case_of(name)
    way, shot, query = case["way_shot_query"].tolist()
    members = torch.from_numpy(case["emb"]).double().reshape(shot + query, way, -1).transpose(0, 1)
    recipe = AdaptationRecipe(
        loss="adapted",
        epochs=1,
        learning_rate=1.0,
        episodes_per_step=1,
        way=way,
        shot=shot,
        query=query,
        logits=kind,
        balance=0.3,
        episode_temperature=float(case["temperature"]),
        balance_temperature=float(case["temperature2"]),
    )
    terms = adaptation_terms(SimpleNamespace(slf_attn=layer, adapt=layer), members, recipe)
    key = "euclid" if kind == "euclidean" else "cosine"
    labels = torch.arange(way).repeat(query)  # the reference's rows are shot-major
    logits = torch.from_numpy(case[f"{key}/logits_train_nodropout"])
    assert terms["adapted"].item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    auxiliary = torch.from_numpy(case[f"{key}/logits_aux_nodropout"])
    expected = 0.3 * F.cross_entropy(auxiliary, torch.arange(way).repeat(shot + query)).item()
    assert terms["balance"].item() == pytest.approx(expected, rel=1e-5)


def test_the_attention_learns_ten_times_as_fast() -> None:
    model = FEAT()
    recipe = models.entry("feat").recipes["paper"]
    optimizer = optimizer_of(model, recipe)
    set_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in model.slf_attn.parameters()} == {5.0}
    assert {rates[id(p)] for p in model.encoder.parameters()} == {0.5}
    assert len(rates) == len(list(model.parameters()))


def test_the_attention_alone(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained(*arguments(data, tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    names = ["2-way 1-shot", "2-way 3-shot"]
    figures = report["evaluation"]["figures"]
    assert list(figures) == [*names, *(f"{name}, {ALONE}" for name in names)]
    assert {"adapted", "balance"} <= set(rows(tmp_path / "run")[0])
    torch.manual_seed(0)
    begun = models.create("feat").state_dict()
    best = load_file(tmp_path / "run" / "best.safetensors")
    changed = {name for name, tensor in best.items() if not torch.equal(tensor, begun[name])}
    assert changed
    assert all(name.startswith("slf_attn.") for name in changed)
    # An interrupted training goes on as an unbroken one.
    trained(*arguments(data, tmp_path / "half", "epochs=1"))
    trained(*arguments(data, tmp_path / "half", "epochs=1"), "--epochs", "2", "--resume")
    after, halved = (load_file(tmp_path / name / "last.safetensors") for name in ("run", "half"))
    assert set(halved) == set(after)
    assert all(torch.equal(halved[name], tensor) for name, tensor in after.items())


def test_both_stages_of_the_paper(data: Path, tmp_path: Path) -> None:
    quick = ("epochs=1", "milestones=[]", "test_way=2")
    trained(
        *(
            a
            for a in arguments(data, tmp_path / "one", *quick, recipe="pretrain")
            if "most_way" not in a or a == "--set"
        )
    )
    best = tmp_path / "one" / "best.safetensors"
    assert load_file(best)["classifier.weight"].shape == (6, 64)
    trained(*arguments(data, tmp_path / "two", *quick, recipe="paper"), "--weights", str(best))
    after = load_file(tmp_path / "two" / "best.safetensors")
    assert "classifier.weight" not in after
    before = load_file(best)
    assert any(not torch.equal(before[name], after[name]) for name in after if name.startswith("encoder."))


def test_what_it_refuses(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(data, tmp_path / "a", "episodes_per_step=2")) == 1
    assert "episodes_per_step is 2; allowed: 1" in capsys.readouterr().err
    assert main(arguments(data, tmp_path / "b", "query=9")) == 1
    assert "too small to train on" in capsys.readouterr().err
