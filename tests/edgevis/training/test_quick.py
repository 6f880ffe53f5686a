"""The recipe ``quick`` of person Re-ID: from the weights that ship, on a folder for each person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgevis import models
from edgevis.provenance import read_provenance
from edgevis.train import main

from training_data import write_persons

pytestmark = pytest.mark.torch


@pytest.fixture
def persons(tmp_path: Path) -> Path:
    """A folder for each of 12 persons, by two cameras."""
    flat = write_persons(tmp_path / "flat")
    for path in (flat / "images").rglob("*.png"):
        camera, _, index = path.stem.partition("_")
        target = tmp_path / "persons" / f"person {path.parent.name}" / f"cam{camera}_{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return tmp_path / "persons"


def test_it_begins_with_what_ships_and_keeps_it_unless_an_epoch_is_better(
    persons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    values = ("epochs=1", "steps_per_epoch=1", "identities=3", "images=2", "warm_up_epochs=0")
    settings = [part for value in values for part in ("--set", value)]
    command = ["osnet-x0-25", "--recipe", "quick", "--data", str(persons), "--output", str(output), *settings]
    assert main(command) == 0
    # These figures are told apart without a mistake, so that no epoch can be better.
    assert "they reach 1, and are kept unless an epoch is better" in capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    data = report["data"]
    assert (data["training persons"], data["validation persons"], data["test persons"]) == (8, 2, 2)
    assert report["files"]["weights"]["name"] == "osnet-x0-25.safetensors"
    provenance = read_provenance(output / "best.safetensors")
    assert provenance is not None
    assert provenance.epoch == 0
    path = models.shipped_weights("osnet-x0-25")
    assert path is not None
    begun = {name: tensor.float() for name, tensor in load_file(path).items()}
    best, last = load_file(output / "best.safetensors"), load_file(output / "last.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in begun.items())
    moved = {name for name, tensor in begun.items() if not torch.equal(last[f"model/{name}"], tensor)}
    assert "conv1.conv.weight" in moved
    assert not any(".bn." in name for name in moved), "batch norms stay as they were"
