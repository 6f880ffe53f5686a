"""``python -m edgevis.train``: every task learns, evaluates and publishes its weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgevis import Predictor, models
from edgevis.data import EpisodeSampler
from edgevis.models.recipe import EpisodeRecipe, SegmentationRecipe
from edgevis.models.resnet12 import SMALL as SMALL_EPISODES
from edgevis.provenance import read_provenance
from edgevis.training import episodes
from edgevis.training.checkpoint import TrainingState, read_state, read_training_state, write_state
from edgevis.training.episodes import nearest_prototype
from edgevis.training.loop import evaluated
from edgevis.training.publish import main as publish
from edgevis.training.task import TaskRequest
from edgevis.training.tasks import classify, few_shot_segment
from export.build import main as build
from runtime.errors import InputError, SchemaError, WeightsError

from training_data import write_classes, write_masks, write_persons
from training_runs import SMALL_ENET, rows, trained

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masks(tmp_path_factory.mktemp("masks"))


def write_six_classes(folder: Path) -> Path:
    return write_masks(folder, images=72, classes=6)


@pytest.mark.parametrize("side", [1000, 12])
def test_the_first_pictures_size_decides_nothing(side: int, tmp_path: Path) -> None:
    data = write_six_classes(tmp_path / "data")
    recipe = models.entry("hsnet-hm").recipes["small"].with_values({"test_shots": [1]})
    deployment = models.entry("hsnet-hm").deployment
    usual = few_shot_segment.training_task(TaskRequest(data, recipe, deployment)).data
    for folder in ("images", "masks"):
        path = str(data / folder / "000.png")
        picture = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        cv2.imwrite(path, cv2.resize(picture, (side, side), interpolation=cv2.INTER_NEAREST))
    assert few_shot_segment.training_task(TaskRequest(data, recipe, deployment)).data == usual


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
        few_shot_segment.training_task(TaskRequest(data, recipe, deployment))


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
        *(part for value in ("epochs=1", "steps_per_epoch=1", *settings) for part in ("--set", value)),
        *(part for value in options for part in ("--option", value)),
    )  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "--precision bf16-mixed" in report["command"]
    assert np.isfinite(float(rows(tmp_path / "run")[-1]["loss"]))


def test_mixed_tasks_draw_base_classes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a base class's images trained: fewer are left to ask about, and the class must not drop out for that."""
    entry = models.entry("resnet12")
    recipe = replace(
        SMALL_EPISODES,
        mixed=True,
        held_out=0.0,
        validate_every=0,
        way=2,
        query=2,
        test_way=2,
        test_query=7,
        test_episodes=20,
    )
    data = write_classes(tmp_path / "data")  # 12 images of each class: 7 queries beside 5 shots, of a half 1
    sampled: set[tuple[int, int]] = set()

    class Recorded(EpisodeSampler):
        def __init__(self, *arguments: Any, shot: int, query: int, **more: Any) -> None:
            super().__init__(*arguments, shot=shot, query=query, **more)
            if more.get("skip_small"):  # to evaluate with
                sampled.add((shot, query))

    monkeypatch.setattr(episodes, "EpisodeSampler", Recorded)
    task = classify.training_task(TaskRequest(data, recipe, entry.deployment))
    assert (task.data["novel classes"], task.data["mixed classes"]) == (2, 4)
    found = evaluated(models.create("resnet12", num_classes=6), task.test)
    assert found is not None
    assert list(found.figures) == [f"{kind}2-way {shot}-shot" for kind in ("", "mixed ") for shot in (1, 5)]
    assert sampled == {(1, 7), (5, 7)} | {(1, 5), (5, 1)}, "shots and queries of novel classes, and of mixed ones"
    with pytest.raises(InputError, match="0 classes have 51 images or more"):  # before training, not after it
        classify.training_task(TaskRequest(data, replace(recipe, test_query=50), entry.deployment))


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
    with pytest.raises(WeightsError, match=r"cannot read .*: it is cut short, damaged"):
        read_training_state(tmp_path / "broken.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="is no checkpoint of a training"):
        read_training_state(tmp_path / "plain.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "old.safetensors", {"edgevis": '{"progress": {}, "optimizer": {}}'})
    with pytest.raises(SchemaError, match=r"of edgevis 0\.1"):
        read_training_state(tmp_path / "old.safetensors")
    assert read_provenance(tmp_path / "plain.safetensors") is None


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
