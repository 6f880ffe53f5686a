"""Training of detectors: batches, losses, warm starts, pseudo-labels, and one that learns."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

pytest.importorskip("pycocotools")

from edgevis import models
from edgevis.data.detection import box_labels
from edgevis.data.leakage import SplitCheck
from edgevis.layers.grid_boxes import cell_grid, decode_cells
from edgevis.models.recipe_detection import DetectionRecipe
from edgevis.provenance import Provenance
from edgevis.train import main
from edgevis.training.checkpoint import write_weights
from edgevis.training.task import SelfTrainingTask, TaskRequest, TrainingTask
from edgevis.training.tasks.detect import DetectionTrainingTask, raw_rows, targets_of, training_task
from edgevis.training.warm_start import load_matching
from runtime.errors import InputError

from training_data import write_boxes
from training_runs import rows

SMALL = {"height": 64, "width": 64}
OPTIONS = [part for name, side in SMALL.items() for part in ("--option", f"{name}={side}")]
# What makes a training out of the recipe that ends in a second.
QUICK = {
    "epochs": 1,
    "steps_per_epoch": 2,
    "batch": 2,
    "held_out": 0.0,
    "validate_every": 0,
    "l1_epochs": 1,
    "warm_up_epochs": 0,
}


def sets(**values: object) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def train(data: Path, output: Path, *arguments: str, model: str = "yolox-nano", **values: object) -> int:
    options = OPTIONS if model == "yolox-nano" else []
    settings = sets(**{**QUICK, **values})
    fixed = [model, "--recipe", "fine-tune", "--data", str(data), "--output", str(output), "--quiet"]
    return main([*fixed, *options, *settings, *arguments])


def task_of(data: Path, check: SplitCheck | None = None, **values: object) -> DetectionTrainingTask:
    entry = models.entry("yolox-nano")
    with torch.device("meta"):
        deployment = models.deployment_of(entry, models.module_from(entry, SMALL))
    recipe = DetectionRecipe(**{"epochs": 4, "learning_rate": 1e-3, "batch": 3, "held_out": 0.0, **values})
    return training_task(TaskRequest(data, recipe, deployment, SMALL, seed=5, check=check or SplitCheck()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_boxes(tmp_path_factory.mktemp("boxes"))


def test_batches_depend_on_seed_epoch_step_and_rank_only(data: Path) -> None:
    task = task_of(data, mosaic=0.5, l1_epochs=1)
    assert isinstance(task, TrainingTask)
    assert isinstance(task, SelfTrainingTask)
    assert task.model_options == {"num_classes": 2, "labels": "box,crate"}
    assert (task.data["training images"], task.data["test images"], task.steps_per_epoch) == (4, 2, 1)
    places = [(epoch, step, rank) for epoch in (0, 3) for step in (0, 1) for rank in (0, 1)]
    first = [task.batch(*place) for place in places]
    again = [task_of(data, mosaic=0.5, l1_epochs=1).batch(*place) for place in reversed(places)][::-1]
    for one, other in zip(first, again, strict=True):
        assert set(one) == {"image", "targets"}
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert one["image"].shape == (3, 3, 64, 64)
        target = one["targets"]
        assert target.shape[1] == 8
        assert (target[:, 2:6] >= 0).all()
        assert (target[:, 2:6] <= 64).all()
    assert len({batch["image"].sum().item() for batch in first}) == len(places)


def test_all_images_come_before_one_comes_again(data: Path) -> None:
    task = task_of(data, batch=1, scale=(1.0, 1.0), flip=False, jitter=0.0)
    for epoch in (0, 1):
        seen = [tuple(task.batch(epoch, step, 0)["image"].flatten()[:64].tolist()) for step in range(8)]
        assert len(set(seen[:4])) == len(set(seen[4:])) == len(set(seen)) == 4


def test_targets_and_rows() -> None:
    labels = [box_labels([], []), box_labels([[1, 2, 3, 4]], [1], ignored=[True], weights=[0.5])]
    assert targets_of(labels).tolist() == [[1, 1, 1, 2, 3, 4, 0.5, 1]]
    assert targets_of(labels[:1]).shape == (0, 8)
    with torch.no_grad():
        for name, classes, size in (("yolox-nano", 2, 64), ("efficientdet-d0", 2, 128)):
            model: Any = models.create(name, num_classes=classes)
            rows = raw_rows(model.heads(torch.rand(1, 3, size, size)), classes=classes)
            scores, _ = model.detect(torch.rand(1, 3, size, size))
            assert rows.shape == (1, scores.shape[1], (5 if name == "yolox-nano" else 4) + classes)


class TinyDetector(nn.Module):
    """A YOLOX of two classes with five stages of two convolutions, and no statistics that must settle."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 16, 32, 48, 64, 64)
        self.stages = nn.ModuleList(self._stage(first, second) for first, second in pairwise(channels))
        self.predictors = nn.ModuleList(nn.Conv2d(count, 7, 1) for count in channels[3:])

    @staticmethod
    def _stage(inputs: int, outputs: int) -> nn.Sequential:
        sizes = ((inputs, 2), (outputs, 1))
        parts = [
            (nn.Conv2d(size, outputs, 3, stride, 1, bias=False), nn.GroupNorm(4, outputs), nn.SiLU())
            for size, stride in sizes
        ]
        return nn.Sequential(*parts[0], *parts[1])

    def heads(self, image: torch.Tensor) -> list[torch.Tensor]:
        x, maps = image / 255 - 0.3, []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number >= 2:
                maps.append(self.predictors[number - 2](x))
        return maps

    def detect(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        code, objectness, logits = raw_rows(self.heads(image), classes=2).split([4, 1, 2], 2)
        boxes = decode_cells(code, *cell_grid((image.shape[2], image.shape[3]), (8, 16, 32)))
        return objectness.sigmoid() * logits.sigmoid(), boxes


def test_a_detector_learns_four_pictures(tmp_path: Path) -> None:
    """From random weights to nearly exact boxes of the right class: assignment, loss, views and evaluation agree."""
    folder = write_boxes(tmp_path / "data", val=0)
    content = (folder / "annotations.json").read_text()
    (folder / "annotations.json").unlink()
    for name in ("train", "val"):
        (folder / f"boxes_{name}.json").write_text(content)
    task = task_of(folder, SplitCheck(allow_leakage=True), batch=4, scale=(1, 1), flip=False, jitter=0.0, l1_epochs=4)
    torch.manual_seed(0)
    model, criterion = TinyDetector(), task.criterion()
    steps, peak = 150, 5e-3
    optimizer = torch.optim.Adam(model.parameters(), peak)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        terms = task.loss(model, criterion, task.batch(0, step, 0), 0)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        evaluation = task.test(model)
    assert evaluation is not None
    assert evaluation.figures["AP"].value > 0.9


def test_averages_go_on_as_an_unbroken_training_would(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "whole", epochs=2, schedule="constant", l1_epochs=0) == 0
    assert train(data, tmp_path / "parts", schedule="constant", l1_epochs=0) == 0
    assert train(data, tmp_path / "parts", "--resume", epochs=2, schedule="constant", l1_epochs=0) == 0
    whole, parts = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "parts"))
    assert any(name.startswith("average/") for name in whole)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    # What is kept is the average, not the weights of the last step.
    best, name = load_file(tmp_path / "whole" / "best.safetensors"), "head.obj_preds.0.weight"
    assert torch.equal(best[name], whole[f"average/{name}"])
    assert not torch.equal(best[name], whole[f"model/{name}"])
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["options"]["labels"] == "box,crate"
    assert set(report["evaluation"]["figures"]) == {"AP", "AP50"}
    assert (tmp_path / "whole" / "detections.png").exists()


@pytest.mark.parametrize("assignment", ["iou", "atss"])
def test_efficientdet_trains(assignment: str, data: Path, tmp_path: Path) -> None:
    options = ["--option", "size=128", "--option", "backbone=mobilenetv2"]
    run = tmp_path / "run"
    assert train(data, run, *options, model="efficientdet-d0", assignment=assignment, steps_per_epoch=1) == 0
    row = rows(run)[0]
    assert float(row["loss"]) == pytest.approx(float(row["class"]) + float(row["box"]), rel=1e-5)


def test_pseudo_labels_are_a_share_of_each_batch(data: Path, tmp_path: Path) -> None:
    pseudo = write_boxes(tmp_path / "pseudo", train=3, val=0, scores=(0.9, 0.3, 0.05), seed=9)
    task = task_of(data, batch=4, pseudo_share=0.25, scale=(1.0, 1.0), flip=False, jitter=0.0, degrade=0.0)
    taught = task.with_pseudo_labels(pseudo, SplitCheck())
    plain, mixed = task.batch(0, 0, 0), taught.batch(0, 0, 0)
    assert torch.equal(plain["image"][:3], mixed["image"][:3])
    assert not torch.equal(plain["image"][3], mixed["image"][3])
    targets = torch.cat([taught.batch(0, step, 0)["targets"] for step in range(3)])
    weights = targets[targets[:, 0] == 3][:, 6:].tolist()
    # Learned with its score as weight, ignored, or dropped.
    assert {(round(weight, 2), ignored) for weight, ignored in weights} == {(0.9, 0.0), (0.3, 1.0)}
    assert taught.data["pseudo-labelled boxes"] == 2
    assert taught.steps_per_epoch == 1
    whole = task_of(data, batch=2, pseudo_share=1.0, degrade=1.0).with_pseudo_labels(pseudo, SplitCheck())
    assert whole.batch(0, 0, 0)["image"].shape[0] == 2
    (pseudo / "images" / "copy.png").write_bytes((data / "images" / "005.png").read_bytes())
    content = json.loads((pseudo / "annotations.json").read_text())
    content["images"].append({"id": 77, "file_name": "copy.png", "width": 64, "height": 64})
    (pseudo / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="1 image with the same bytes in pseudo-labels and test"):
        task.with_pseudo_labels(pseudo, SplitCheck())
    with pytest.raises(InputError, match=r"ignore_score is 0\.9; allowed: at most pseudo_score, 0\.5"):
        task_of(data, ignore_score=0.9).with_pseudo_labels(pseudo, SplitCheck())


def test_a_training_with_pseudo_labels(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pseudo = write_boxes(tmp_path / "pseudo", train=3, val=0, scores=(0.9, 0.4), seed=9)
    assert train(data, tmp_path / "run", "--pseudo-labels", str(pseudo)) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["data"]["pseudo-labelled images"] == 3
    assert report["pseudo-labels"]["count"] == 4
    assert "--pseudo-labels pseudo" in report["command"]
    (pseudo / "annotations.json").write_text((pseudo / "annotations.json").read_text().replace("0.9", "0.8"))
    assert train(data, tmp_path / "run", "--pseudo-labels", str(pseudo), "--resume") == 1
    assert "pseudo-labels.sha256 was" in capsys.readouterr().err


def saved(path: Path, model: nn.Module, name: str, **options: object) -> Path:
    write_weights(path, model, Provenance(name, options, {}, {}, 0, 0))
    return path


@pytest.mark.parametrize(("name", "person"), [("yolox-nano", 0), ("efficientdet-d0", 0)])
def test_published_weights_give_the_row_of_person(name: str, person: int, tmp_path: Path) -> None:
    """Without a provenance the classes are the model's own for that many: COCO's."""
    torch.manual_seed(0)
    published = models.create(name)
    torch.save(published.state_dict(), tmp_path / "published.pt")
    entry = models.entry(name)
    model = models.create(name, num_classes=1, labels="person")
    note = load_matching(model, tmp_path / "published.pt", entry=entry)
    assert note == "classes kept: person"
    state, before = model.state_dict(), published.state_dict()
    for key, tensor in state.items():
        if key.startswith(entry.class_predictors):
            per_place = len(tensor)
            old = before[key].reshape(per_place, -1, *tensor.shape[1:])[:, person]
            assert torch.equal(tensor, old)
        else:
            assert torch.equal(tensor, before[key])


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": 2, "labels": "box,crate"}
    path = saved(tmp_path / "two.safetensors", models.create("yolox-nano", **options), "yolox-nano", **options)
    before = load_file(path)
    entry = models.entry("yolox-nano")
    model = models.create("yolox-nano", num_classes=3, labels="crate,cup,box")
    own = model.state_dict()["head.cls_preds.0.weight"][1].clone()
    assert load_matching(model, path, entry=entry) == "classes kept: crate, box; begun anew: cup"
    weight = model.state_dict()["head.cls_preds.0.weight"]
    old = before["head.cls_preds.0.weight"]
    assert torch.equal(weight, torch.stack([old[1], own, old[0]]))
    assert load_matching(models.create("yolox-nano", **options), path, entry=entry) == ""


def test_no_teacher_class_or_data_is_invented(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (sets(classes="dog"), "'dog', which is no class"),
        (sets(scale=[2, 1]), "the least and the largest"),
        (["--option", "num_classes=3"], "num_classes is 3; allowed: 2, as the data have"),
        (["--pseudo-labels", str(tmp_path / "absent")], "does not exist"),
    ):
        assert train(data, tmp_path / "run", *arguments) in (1, 2)
        assert message in capsys.readouterr().err


def test_evaluation_is_the_predictors(data: Path) -> None:
    """A model that knows the boxes has AP 1: they come back from the input's pixels to the image's."""
    task = task_of(data)
    entry = models.entry("yolox-nano")

    class Perfect(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def detect(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            scores, boxes = torch.zeros(len(image), 4, 2), torch.zeros(len(image), 4, 4)
            for number, pixels in enumerate(image):  # BGR, 0..255
                for label, channel in enumerate((2, 0)):
                    for half in (0, 1):
                        part = pixels[channel].clone() * (pixels[2 - channel] < 150)
                        part[:, 32 * (1 - half) : 32 * (2 - half)] = 0
                        columns, lines = (part > 150).any(0).nonzero(), (part > 150).any(1).nonzero()
                        if len(columns):
                            box = [columns[0], lines[0], columns[-1] + 1, lines[-1] + 1]
                            boxes[number, 2 * label + half] = torch.tensor([float(value) for value in box])
                            scores[number, 2 * label + half, label] = 0.9
            return scores, boxes

    assert entry.deployment.preprocess.color == "BGR"
    evaluation = task.test(Perfect())
    assert evaluation is not None
    assert {name: figure.value for name, figure in evaluation.figures.items()} == {"AP": 1.0, "AP50": 1.0}
    assert np.isfinite(evaluation.figures["AP"].half_width95)
    assert task.validate(Perfect()) is None
