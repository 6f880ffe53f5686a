"""--resume goes on with the training that was begun; one that diverges ends, and what is whole stays."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgevis import models
from edgevis.models.recipe import SegmentationRecipe
from edgevis.provenance import Provenance
from edgevis.train import main
from edgevis.training.checkpoint import TrainingState, read_state, read_training_state, write_halved, write_state
from edgevis.training.finite import TrainingError, require_finite
from edgevis.training.identity import list_data, read_listing, summary_of, write_listing
from edgevis.training.loop import Run, validated
from edgevis.training.publish import main as publish
from edgevis.training.task import Evaluation, MetricValue
from runtime.errors import SourceError, WeightsError

from python_processes import python_environment
from training_data import write_masks

pytestmark = pytest.mark.torch

SMALL = ["enet", "--recipe", "small", "--option", "side=32", "--set", "batch=2", "--set", "steps_per_epoch=1"]
SMALL += ["--set", "supervision=masks", "--set", "schedule=constant", "--set", "warm_up_epochs=0", "--quiet"]


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    return write_masks(tmp_path / "masks")


def run(data: Path, output: Path, *arguments: object) -> int:
    return main([*SMALL, "--data", str(data), "--output", str(output), *map(str, arguments)])


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# --- the same training


def test_a_training_is_resumed_as_what_it_was_begun(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, weights = tmp_path / "run", tmp_path / "weights.safetensors"
    save_file(models.create("enet", side=32).state_dict(), weights)
    assert run(masks, output, "--epochs", 2) == 0
    before = contents(output)

    def refused(*arguments: object) -> str:
        assert run(masks, output, "--resume", "--epochs", 2, *arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert contents(output) == before
        return error

    assert "precision was 'fp32', is 'bf16'" in refused("--precision", "bf16-mixed")
    assert "seed was 0, is 1" in refused("--seed", 1)
    assert "recipe.learning_rate was" in refused("--set", "learning_rate=0.5")
    assert "weights was none, is '" in refused("--weights", weights)
    assert "recipe.epochs was 2, is 1; it may only grow" in refused("--epochs", 1)
    both = refused("--seed", 1, "--set", "momentum=0.5")
    assert "seed was 0, is 1" in both
    assert "recipe.momentum was" in both
    table, image = masks / "index.csv", masks / "images" / "003.png"
    kept = table.read_bytes()
    table.write_bytes(kept.replace(b"000,train", b"000,val"))
    assert "data files: 1 changed: index.csv." in refused()
    table.write_bytes(kept)
    picture = image.read_bytes()
    cv2.imwrite(str(image), np.full((48, 48, 3), 9, np.uint8))
    assert "1 changed: images/003.png" in refused()
    (masks / "more.txt").touch()
    assert "data files: 1 changed: images/003.png; 1 added: more.txt." in refused()
    (masks / "more.txt").unlink()
    image.write_bytes(picture)
    assert run(masks, output, "--resume", "--epochs", 2) == 0, "the same contents are the same data"
    report = json.loads((output / "report.json").read_text())
    assert (report["precision"], [s["first_epoch"] for s in report["sessions"]]) == ("32-true", [1])
    assert report["weights"]["sha256"] == contents(output)["best.safetensors"]


def test_starting_weights_must_stay(masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = [tmp_path / f"{seed}.safetensors" for seed in (0, 1)]
    for path in weights:
        save_file(models.create("enet", side=32).state_dict(), path)
    assert run(masks, tmp_path / "run", "--epochs", 1, "--weights", weights[0]) == 0
    again = ("--resume", "--epochs", 2)
    assert run(masks, tmp_path / "run", *again) == 1
    assert "', is none" in capsys.readouterr().err
    assert run(masks, tmp_path / "run", *again, "--weights", weights[1]) == 1
    assert "weights was '" in capsys.readouterr().err
    shutil.copy(weights[0], tmp_path / "renamed.safetensors")
    assert run(masks, tmp_path / "run", *again, "--weights", tmp_path / "renamed.safetensors") == 0


def test_more_epochs_go_on_as_if_they_had_been_asked_for(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(masks, tmp_path / "whole", "--epochs", 3) == 0
    assert run(masks, tmp_path / "grown", "--epochs", 1) == 0
    elsewhere = masks.rename(tmp_path / "elsewhere")
    assert run(elsewhere, tmp_path / "grown", "--set", "epochs=3", "--resume") == 0
    elsewhere.rename(masks)
    whole, grown = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "grown"))
    assert all(torch.equal(tensor, grown[key]) for key, tensor in whole.items())
    report = json.loads((tmp_path / "grown" / "report.json").read_text())
    assert [(part["first_epoch"], part["epochs"]) for part in report["sessions"]] == [(1, 1), (2, 3)]
    assert report["epochs"] == report["recipe"]["epochs"] == 3

    loud = [argument for argument in SMALL if argument != "--quiet"] + ["--data", str(masks)]
    loud += ["--output", str(tmp_path / "cosine"), "--set", "schedule=cosine", "--set", "learning_rate=0.001"]
    assert main([*loud, "--epochs", "1"]) == 0
    capsys.readouterr()
    assert main([*loud, "--epochs", "2", "--resume"]) == 0
    told = capsys.readouterr().out
    assert "epochs grow from 1 to 2" in told
    assert "is at 0.0005 where the shorter one had come down to 0;" in told


def test_what_is_missing_in_the_folder_is_said_before_the_training(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert run(masks, output, "--epochs", 1) == 0
    (output / "best.safetensors").rename(tmp_path / "best")
    assert run(masks, output, "--resume", "--epochs", 2) == 1
    assert "best.safetensors, the weights that validated best" in capsys.readouterr().err
    assert read_training_state(output / "last.safetensors").epochs == 1
    (tmp_path / "best").rename(output / "best.safetensors")
    (output / "last.safetensors").unlink()
    before = contents(output)
    for arguments, message in (((), "holds the weights or the report"), (("--resume",), "without its last.safeten")):
        assert run(masks, output, "--epochs", 1, *arguments) == 1
        assert message in capsys.readouterr().err
    assert contents(output) == before


def test_two_trainings_do_not_share_a_folder(masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    output.mkdir()
    descriptor = os.open(output, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert run(masks, output, "--epochs", 1) == 1
    assert f"another training is running in {output}" in capsys.readouterr().err
    assert list(output.iterdir()) == []
    os.close(descriptor)
    assert run(masks, output, "--epochs", 1) == 0


@pytest.mark.parametrize(
    ("number", "status", "processes"),
    [
        (signal.SIGTERM, 143, ("--workers", "1")),
        (signal.SIGKILL, -9, ("--workers", "1")),
        (signal.SIGTERM, 143, ("--devices", "2", "--accelerator", "cpu")),
    ],
)
def test_a_training_that_is_ended_takes_its_processes_along(
    masks: Path, tmp_path: Path, number: int, status: int, processes: tuple[str, ...]
) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "edgevis.train", *SMALL, "--data", str(masks), "--epochs", "1000"]
    command += ["--output", str(output), *processes]
    env = {**python_environment(), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not (output / "last.safetensors").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    if number == signal.SIGTERM:
        line = "terminated: the same command with --resume goes on from the last checkpoint"
        # Behind it PyTorch may say that an iterator of the data was ended before it had begun.
        assert line in errors.splitlines()
        assert not [path for path in output.iterdir() if path.name.startswith(".")]
    # No lock is left, whatever is left of the workers; they end by themselves.
    done = read_training_state(output / "last.safetensors").epochs
    assert run(masks, output, "--resume", "--epochs", 1000, "--seed", 1) == 1
    assert read_training_state(output / "last.safetensors").epochs == done
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("processes of the training are still there")


# --- the contents of data


def test_a_folder_and_its_zip_have_the_same_contents(masks: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "masks.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in masks.rglob("*.*"):
            archive.write(path, path.relative_to(masks))
        archive.writestr("zeros.bin", bytes(5 << 20))  # more than a block, packed to almost nothing
    (masks / "zeros.bin").write_bytes(bytes(5 << 20))
    (masks / "run").mkdir()
    (masks / "run" / "log.csv").write_text("epoch\n1\n")
    folder = list_data(masks, output=masks / "run", known={})
    packed = list_data(tmp_path / "masks.zip", output=masks / "run", known={})
    assert summary_of(folder) == summary_of(packed)
    assert "run/log.csv" not in [file.name for file in folder]
    printed = "".join(
        f"{hashlib.sha256((masks / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(f.name for f in folder)
    )
    assert summary_of(folder)["sha256"] == hashlib.sha256(printed.encode()).hexdigest()
    damaged = bytearray((tmp_path / "masks.zip").read_bytes())
    damaged[200] ^= 0xFF
    (tmp_path / "masks.zip").write_bytes(damaged)
    with pytest.raises(SourceError, match="cannot be read"):
        list_data(tmp_path / "masks.zip", output=tmp_path, known={})


def test_hashes_are_taken_over_only_of_files_that_nobody_wrote(masks: Path, tmp_path: Path) -> None:
    fresh = list_data(masks, output=tmp_path, known={})
    assert {file.stamp for file in fresh} == {""}, "files of the same second may still be written in the same tick"
    old = time.time() - 100
    for path in masks.rglob("*.png"):
        os.utime(path, (old, old))
    listing = tmp_path / "data.csv"
    # As of an hour ago: a stamp counts whenever it is the file's.
    write_listing(listing, [type(file)(file.name, file.sha256, file.size_bytes, "1 2 3 4 5") for file in fresh])
    known = read_listing(listing)
    assert summary_of(tuple(known.values())) == summary_of(fresh)
    image = masks / "images" / "000.png"
    size, times = image.stat().st_size, image.stat()
    image.write_bytes(bytes(size))
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = {file.name: file for file in list_data(masks, output=tmp_path, known=known)}
    assert again["images/000.png"].sha256 != known["images/000.png"].sha256
    listing.write_text("damaged")
    assert read_listing(listing) == {}


# --- what is not finite


def test_weights_that_diverge_end_the_training_and_keep_the_last_whole_epoch(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first epoch's only step has the rate 0, the second's one that no weight survives.
    rates = ["optimizer=sgd", "learning_rate=1e38", "warm_up_epochs=1", "warm_up_from=0", "clip_norm=0"]
    rates.append("weight_decay=1e10")
    output = tmp_path / "run"
    assert run(masks, output, "--epochs", 4, *(part for rate in rates for part in ("--set", rate))) == 1
    error = capsys.readouterr().err
    assert "weights are not finite after epoch 2, step 1; '" in error
    assert "' holds " in error
    assert "the checkpoint of epoch 1 is whole" in error
    assert read_training_state(output / "last.safetensors").epochs == 1
    for name in ("best.safetensors", "last.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(output / name).values())
    assert not (output / "report.json").exists()


def test_a_training_that_diverges_at_once_leaves_no_weights(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    rates = ("--set", "optimizer=sgd", "--set", "learning_rate=1e38", "--set", "clip_norm=0")
    # Weights of 1e38 are finite, and what is computed with them is not.
    assert run(masks, output, "--epochs", 1, *rates) == 1
    assert "in the validation after epoch 1: the model's logits of 1 of 1 images" in capsys.readouterr().err
    assert not list(output.glob("*.safetensors"))
    assert run(masks, output, "--epochs", 1, *rates, "--set", "weight_decay=1e10") == 1
    error = capsys.readouterr().err
    assert "epoch 1, step 1" in error
    assert "there is no checkpoint yet" in error
    assert not list(output.glob("*.safetensors"))


class _Figures:
    """A training task that validates as it is told."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def validate(self, model: nn.Module) -> Evaluation:
        return Evaluation("nothing", {"score": MetricValue(self.values.pop(0)), "other": MetricValue(0.5)})


class _Notes:
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_is_never_the_best(figure: float, tmp_path: Path) -> None:
    recipe = SegmentationRecipe(supervision="masks", epochs=4, learning_rate=1.0)
    begun = TrainingState({}, 0, 0.0, None, ())
    task, notes = _Figures(figure, 0.25, figure), _Notes()
    provenance = Provenance("enet", {}, {}, {}, 0, 0)
    model = nn.Linear(1, 1)
    training: Any = Run(model, task, recipe, provenance, tmp_path, begun)  # type: ignore[arg-type]
    bests, progress = [], begun
    for epoch in (1, 2, 3):
        progress = TrainingState({}, epoch, 0.0, progress.best, (*progress.history, {"epoch": float(epoch)}))
        progress = validated(training, progress, notes)  # type: ignore[arg-type]
        bests.append(progress.best)
    assert bests == [None, 0.25, 0.25]
    assert progress.history[0] == {"epoch": 1.0, "validation other": 0.5}
    assert notes.said[0] == f"the validation score of epoch 1 is {figure}: it cannot be the best"


def test_states_and_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    begun = TrainingState({}, 1, 0.5, None, ())
    path = tmp_path / "s.safetensors"
    write_state(path, {"model": model}, sgd, begun)
    whole = path.read_bytes()
    with torch.no_grad():
        model.bias[1] = math.inf
    with pytest.raises(WeightsError, match=r"was not written: 'model/bias' holds infinity \(1 of 2 numbers\)"):
        write_state(path, {"model": model}, sgd, begun)
    assert path.read_bytes() == whole
    tensors = {**load_file(path), "model/weight": torch.full((2, 3), math.nan)}
    save_file(tensors, path, {"edgevis": json.dumps({"state": {}, "optimizer": {}})})
    with pytest.raises(WeightsError, match=r"'model/weight' holds NaN \(6 of 6 numbers\)"):
        read_state(path, {"model": nn.Linear(3, 2)}, sgd)
    with pytest.raises(WeightsError, match="'w' holds infinity"):  # of float16
        write_halved(tmp_path / "h.safetensors", {"w": torch.full((1, 1), 1e6)}, None)
    assert not (tmp_path / "h.safetensors").exists()


def test_outputs_that_are_not_finite_are_not_evaluated() -> None:
    values = np.zeros((3, 2, 2), np.float32)
    require_finite(values, "the model's logits")
    values[1, 0, 0] = np.nan
    with pytest.raises(TrainingError, match="the model's logits of 1 of 3 images hold NaN or infinity"):
        require_finite(values, "the model's logits")


def test_publishing_refuses_what_the_report_is_not_of(
    masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert run(masks, output, "--epochs", 1) == 0
    sources = tmp_path / "sources.json"
    report = json.loads((output / "report.json").read_text())
    sources.write_text(json.dumps([{"name": "masks", "sha256": report["files"]["data"]["sha256"]}]))
    arguments = [
        str(output),
        "--data",
        str(masks),
        "--sources",
        str(sources),
        "--output",
        str(tmp_path / "w.safetensors"),
    ]
    (masks / "images" / "000.png").write_bytes((masks / "images" / "001.png").read_bytes())
    assert publish(arguments) == 1
    assert "is not what 'enet' was trained on" in capsys.readouterr().err
    provenance = json.dumps({"model": "enet", "options": {}, "recipe": {}, "data": {}, "seed": 0, "epoch": 1})
    save_file(load_file(output / "best.safetensors"), output / "best.safetensors", {"edgevis": provenance})
    assert publish(arguments) == 1
    assert "report.json is of other weights than best.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()
