"""A loss in a file of one's own trains every task that learns: no other file is edited."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from safetensors.torch import load_file

from edgevis.train import main

from training_data import write_boxes, write_classes, write_masks, write_persons

pytestmark = pytest.mark.torch

LOSSES = '''
import torch
from torch import nn


class ToyLoss(nn.Module):
    """Pulls embeddings to a learned centre of their class."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, embedding, target):
        assert embedding.dtype == torch.float32 and target.dtype == torch.int64
        centres = torch.stack([embedding[target == label].mean(0) for label in target])
        return {"pull": (embedding - centres).square().mean(), "scale": (self.weight - 1).square()}


def map_loss(logits, mask):
    return nn.functional.binary_cross_entropy_with_logits(logits, mask)


def box_loss(logits, boxes):
    assert boxes.shape[1] == 6
    return logits.sigmoid().mean()


def row_loss(rows, targets):
    assert rows.shape[2] == 5 + 2 and targets.shape[1] == 8
    return {"objectness": rows[..., 4].sigmoid().mean()}


def shapeless(logits, mask):
    return logits


def nothing(logits, mask):
    return {}


class Built(nn.Module):
    def __init__(self, size):
        super().__init__()


number = 3
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of somebody else with one file."""
    folder = tmp_path / "foreign" / "toy_losses"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "toy.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield "toy_losses.toy"
    for name in ("toy_losses.toy", "toy_losses"):
        sys.modules.pop(name, None)


def train(model: str, data: Path, output: Path, loss: str, **values: object) -> int:
    settings = {"loss": loss, "epochs": 1, "steps_per_epoch": 2, "validate_every": 0, "warm_up_epochs": 0, **values}
    pairs = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return main([model, "--recipe", "small", "--data", str(data), "--output", str(output), "--quiet", *pairs])


def test_embeddings(package: str, tmp_path: Path) -> None:
    """Re-ID and few-shot classification; what the loss learns is stored, and a teacher may teach besides."""
    persons, classes = write_persons(tmp_path / "persons"), write_classes(tmp_path / "classes")
    output = tmp_path / "reid"
    assert train("osnet-x0-25", persons, output, f"{package}:ToyLoss", identities=2, images=2) == 0
    with (output / "log.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["loss"]) == pytest.approx(float(row["pull"]) + float(row["scale"]), rel=1e-5)
    assert float(load_file(output / "last.safetensors")["criterion/weight"]) != 2
    assert "classifier.weight" not in load_file(output / "best.safetensors")
    episodes = {"way": 2, "query": 1, "episodes_per_step": 1, "held_out": 0}
    episodes |= {"test_way": 2, "test_query": 2, "test_episodes": 2}
    assert train("mobilenetv2", classes, tmp_path / "few", f"{package}:ToyLoss", **episodes) == 0


def test_boxes(package: str, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    settings = {"loss": f"{package}:row_loss", "epochs": 1, "steps_per_epoch": 1, "batch": 2, "validate_every": 0}
    pairs = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    options = ["--option", "height=64", "--option", "width=64", "--recipe", "fine-tune", "--quiet"]
    data, output = write_boxes(tmp_path / "boxes"), tmp_path / "run"
    assert main(["yolox-nano", "--data", str(data), "--output", str(output), *options, *pairs]) == 0
    assert (output / "best.safetensors").exists()


def test_maps(package: str, tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "masks")
    assert train("enet", masks, tmp_path / "masks-run", f"{package}:map_loss", supervision="masks", batch=2) == 0
    assert train("enet", masks, tmp_path / "boxes-run", f"{package}:box_loss", supervision="boxes", batch=2) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.module:loss", "cannot be imported: No module named 'absent'"),
        ("{}:absent", "has no attribute 'absent'"),
        ("{}:number", "is a int; allowed: a function, or a subclass of torch.nn.Module"),
        ("{}:Built", "cannot be built without arguments"),
        ("{}:shapeless", "allowed: a floating-point scalar tensor"),
        ("{}:nothing", "the loss returned no terms"),
        ("no-loss", "loss is 'no-loss'; allowed: supervised, or package.module:NAME"),
    ],
)
def test_what_is_no_loss_is_refused(
    name: str, message: str, package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = write_masks(tmp_path / "masks")
    assert train("enet", masks, tmp_path / "run", name.format(package), supervision="masks", batch=2) == 1
    assert message in capsys.readouterr().err
