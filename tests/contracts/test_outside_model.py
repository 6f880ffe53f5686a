"""A model of another package trains, builds and runs without a change to edgevis: the example of docs/extending.md."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgevis import Predictor, models
from edgevis.cli import main
from edgevis.models.advice import recipe_advice
from edgevis.models.recipe import Recipe
from runtime.bundle.bundle import Bundle
from runtime.errors import ModelError, UnknownModelError

from bundles import needs_openvino, picture
from logs import logged_warnings
from training_data import write_classes

pytestmark = [pytest.mark.torch]

PATH = "shelf.small_net:SmallNet"
PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, which holds the package of the page."""
    (source,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "SmallNet" in block)
    package = tmp_path / "work" / "shelf"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "small_net.py").write_text(source)
    monkeypatch.chdir(package.parent)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] in ("shelf", "broken")]:
        del sys.modules[name]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, entry_points: str) -> None:
    """As pip records an installed package that offers models."""
    record = folder / "shelf-1.0.dist-info"
    record.mkdir(parents=True, exist_ok=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(f"[edgevis.models]\n{entry_points}\n")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


@needs_openvino
def test_a_model_of_another_package_trains_builds_and_runs(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_classes(tmp_path / "photographs", classes=8, images=8)
    settings = ("epochs=1", "steps_per_epoch=2", "way=2", "query=2", "test_way=2", "test_query=2", "test_episodes=2")
    values = [part for value in settings for part in ("--set", value)]
    train = ["train", PATH, "--data", str(data), "--set", "test_shots=[1]", *values, "--option", "width=8", "--quiet"]
    assert main(train) == 0
    weights = Path("runs", "SmallNet", "best.safetensors")
    assert json.loads(Path("runs", "SmallNet", "report.json").read_text())["command"].split()[3] == PATH
    # The options travel with the weights.
    build = ["--checkpoint", str(weights), "--calibration-data", str(data), "--precision", "fp32", "--no-cache"]
    assert main(["build", "--model", PATH, *build, "--quiet"]) == 0
    bundle = Bundle(Path("bundles", "SmallNet.edgevis"))
    assert bundle.manifest.model == PATH
    assert bundle.manifest.options == {"width": 8}
    assert bundle.manifest.weights.trained
    assert [record.name for record in bundle.manifest.engines] == ["onnxruntime-fp32", "openvino-fp32"]
    with Predictor(bundle.path, backend="onnxruntime", threads=1) as predictor:
        predictor.enroll("one", picture(1))
        predictor.enroll("two", picture(2))
        assert predictor.predict(picture(2), top_k=1).labels == ("two",)
    # By the short name of an installed package it is the same model.
    install(tmp_path / "site", monkeypatch, f"small-net = {PATH}")
    assert main(["build", "--model", "small_net", *build, "--quiet", "--output", "again/"]) == 0
    again = Bundle(Path("again", "SmallNet.edgevis"))
    assert again.manifest.model == PATH
    assert again.manifest.encoder_identity == bundle.manifest.encoder_identity
    capsys.readouterr()
    for verb in ("build", "train"):
        assert main([verb, "--list"]) == 0
        assert PATH in capsys.readouterr().out


def test_an_entry_is_found_by_attribute_and_by_name(shelf: Path) -> None:
    (shelf / "entries.py").write_text(
        "from dataclasses import replace\n"
        "from edgevis.models import ModelEntry\n"
        "from shelf.small_net import DEPLOYMENT, SmallNet\n"
        "SMALL = ModelEntry('small-net', SmallNet, DEPLOYMENT, 'a paper', 'MIT', 63_456)\n"
        "ENTRIES = (SMALL,)\n"
    )
    for name in ("SMALL", "small-net", "small_net"):
        found = models.entry(f"shelf.entries:{name}")
        assert found.name == f"shelf.entries:{name}"
        assert (found.paper, found.licence) == ("a paper", "MIT")
    assert models.parameters(models.create("shelf.entries:SMALL", width=16)) > 0


def test_what_a_class_declares(shelf: Path) -> None:
    found = models.entry(PATH)
    assert found.name == PATH
    assert found.parameters == models.parameters(models.create(PATH))
    assert found.paper == "A small encoder for few-shot classification."
    assert list(found.recipes) == ["paper"]
    assert models.create(PATH, width=8).encode(torch.zeros(2, 3, 64, 64)).shape == (2, 64)
    with pytest.raises(ModelError, match="has no option 'depth'; its options: width"):
        models.create(PATH, depth=3)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("nowhere.models:Net", UnknownModelError, "there is no module nowhere for the model 'nowhere.models:Net'"),
        ("shelf.nowhere:Net", UnknownModelError, r"there is no module shelf\.nowhere for"),
        ("shelf.small_net:Other", UnknownModelError, r"shelf\.small_net has no 'Other'; it has SmallNet"),
        ("shelf.small_net:DEPLOYMENT", ModelError, "is a Deployment; allowed: an nn.Module class with a DEPLOYMENT"),
        ("shelf.small_net:", UnknownModelError, r"has no ''; it has SmallNet"),
        ("../shelf:Net", UnknownModelError, r"is no path of a model; allowed: package\.module:NAME"),
        ("broken:Net", ModelError, "broken cannot be imported for the model 'broken:Net': division by zero"),
        ("shelf.bare:Net", ModelError, "has no DEPLOYMENT: declare one in the class or in its module"),
        ("shelf.wordy:Net", ModelError, "has no method 'encode', which its DEPLOYMENT names as a graph"),
        ("shelf.needy:Net", ModelError, "cannot be made without arguments: .*width"),
    ],
)
def test_what_is_no_model(shelf: Path, path: str, error: type[Exception], message: str) -> None:
    (shelf.parent / "broken.py").write_text("1 / 0\n")
    (shelf / "bare.py").write_text("from torch import nn\nclass Net(nn.Module): pass\n")
    declared = "from torch import nn\nfrom shelf.small_net import DEPLOYMENT\nclass Net(nn.Module):\n"
    (shelf / "wordy.py").write_text(f"{declared}    pass\n")
    (shelf / "needy.py").write_text(
        f"{declared}    def __init__(self, width): pass\n    def encode(self, image): return image\n"
    )
    with pytest.raises(error, match=message):
        models.entry(path)


def test_an_installed_model_that_cannot_be_had_is_left_out(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = models.names()
    install(tmp_path / "site", monkeypatch, "gone = nowhere.models:Net\nosnet_x0_25 = shelf.small_net:SmallNet")
    assert models.names() == sorted([*before, "gone"])
    with logged_warnings(match="the model gone of an installed package is left out: there is no module nowhere"):
        assert [entry.name for entry in models.declared_entries()] == before
    assert models.entry("osnet-x0-25").name == "osnet-x0-25"  # no other package takes a name of edgevis


def test_hyphen_and_underscore_are_one() -> None:
    assert models.entry("osnet_x0_25") is models.entry("osnet-x0-25")
    with pytest.raises(UnknownModelError, match=r"no model 'osnet'; known: .*, or package\.module:NAME"):
        models.entry("osnet")


def examples(message: str) -> list[str]:
    """The code in a message: its indented lines."""
    return [line[4:] for line in message.splitlines() if line.startswith("    ")]


def test_a_class_that_declares_nothing_is_told_how(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What both messages show is enough to train it."""
    source = (shelf / "small_net.py").read_text()
    net = source[source.index("def block") :]
    imports = "from itertools import pairwise\nfrom torch import Tensor, nn\n"
    data = write_classes(tmp_path / "photographs", classes=8, images=8)
    values = ("epochs=1", "steps_per_epoch=2", "way=2", "query=2", "test_way=2", "test_query=2", "test_episodes=2")
    arguments = [part for value in (*values, "test_shots=[1]", "held_out=0.4") for part in ("--set", value)]

    def trained(name: str, text: str) -> tuple[int, str]:
        (shelf / f"{name}.py").write_text(imports + text + "\n\n" + net)
        command = ["train", f"shelf.{name}:SmallNet", "--data", str(data), "--output", f"runs/{name}", "--quiet"]
        return main([*command, *arguments]), capsys.readouterr().err

    status, error = trained("bare", "")
    assert status == 1
    assert error.startswith("error: shelf.bare:SmallNet has no DEPLOYMENT: declare one in the class or in its module")
    assert "docs/extending.md, 'A model', has a whole file" in error
    deployment = examples(error)
    assert len(deployment) == 5
    status, error = trained("deployed", "\n".join(deployment))
    assert status == 1
    assert error.startswith("error: shelf.deployed:SmallNet has no recipe: declare RECIPES")
    assert "needed: loss, epochs, learning_rate; the other fields have defaults" in error
    recipe = examples(error)
    assert len(recipe) <= 5
    assert trained("whole", "\n".join([*deployment, *recipe])) == (0, "")


@pytest.mark.parametrize("task", ["classify", "reid", "few-shot-segment", "segment", "detect"])
def test_each_tasks_recipe_is_shown_as_it_can_be_written(task: str) -> None:
    advice = recipe_advice("shelf.small_net:SmallNet", task)
    scope: dict[str, dict[str, Recipe]] = {}
    exec("\n".join(examples(advice)), scope)  # noqa: S102 - our own message
    assert scope["RECIPES"]["paper"].epochs == 30
    assert "there is no training for its task 'toy'" in recipe_advice("shelf:Net", "toy")
