"""--resume goes on with a checkpoint from before its recipe had a new field, which has then its default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from edgevis.provenance import KEY, metadata
from edgevis.train import main
from edgevis.training.checkpoint import read_training_state

from training_data import write_masks

pytestmark = pytest.mark.torch


def rewrite_recipe(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the recipe that a checkpoint says it was begun with."""
    text = json.loads(metadata(path)[KEY])
    change(text["state"]["identity"]["recipe"])
    save_file(load_file(path), path, metadata={KEY: json.dumps(text)})


def older(recipe: dict[str, Any]) -> None:
    del recipe["int8_epochs"], recipe["frozen"]


def test_fields_that_are_newer_than_the_checkpoint_have_their_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = write_masks(tmp_path / "masks"), tmp_path / "run"
    last = output / "last.safetensors"

    def run(epochs: int, *values: str) -> int:
        settings = ("batch=2", "steps_per_epoch=1", "supervision=masks", "warm_up_epochs=0", *values)
        return main(
            ["enet", "--recipe", "small", "--option", "side=32", "--data", str(data), "--output", str(output)]
            + ["--quiet", "--resume", "--epochs", str(epochs)]
            + [argument for value in settings for argument in ("--set", value)]
        )

    assert run(1) == 0
    rewrite_recipe(last, older)
    for value, said in (("int8_epochs=1", "int8_epochs was 0, is 1"), ('frozen=["initial"]', "frozen was [], is [")):
        assert run(2, value) == 1
        error = capsys.readouterr().err
        assert f"is of another training: recipe.{said}" in error
        assert ";" not in error
    rewrite_recipe(last, lambda recipe: recipe.update(gone=3))
    assert run(2) == 1
    assert "is of another training: recipe.gone was 3, is none." in capsys.readouterr().err
    rewrite_recipe(last, lambda recipe: recipe.pop("gone"))
    assert run(2) == 0
    state = read_training_state(last)
    assert (state.epochs, state.identity["recipe"]["int8_epochs"]) == (2, 0)
