"""``python -m edgevis.train --teacher`` for detectors: the student learns the teacher's raw maps besides the boxes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgevis import models
from edgevis.provenance import read_provenance
from edgevis.train import main
from edgevis.training.detection_distillation import DetectionDistillationTask
from edgevis.training.publish import main as publish
from edgevis.training.teacher import open_teacher
from runtime.bundle.bundle import sha256
from runtime.errors import InputError

pytestmark = pytest.mark.torch

WORDS = ("--set", "steps_per_epoch=2", "--set", "batch=2", "--set", "warm_up_epochs=0", "--epochs", "2")
SMALL = ("--option", "height=64", "--option", "width=96")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's format: 12 pictures of a bright blob, the last three for validation."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(3)
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    parts: dict[str, list[int]] = {"train": list(range(9)), "val": list(range(9, 12))}
    for part, numbers in parts.items():
        images, annotations = [], []
        for number in numbers:
            image = random.integers(0, 120, (64, 96, 3), np.uint8)
            x, y = (int(value) for value in random.integers(4, 30, 2))
            image[y : y + 30, x : x + 24] = 255
            cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
            images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
            annotations.append({"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, 24, 30]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of COCO's 80 classes as others publish it: it says nothing of itself."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "yolox.safetensors"
    save_file(models.create("yolox-nano").state_dict(), path)
    return path


def test_student_starts_from_and_learns_a_published_detector(data: Path, published: Path, tmp_path: Path) -> None:
    taught = ("--teacher", str(published), "--teacher-model", "yolox-nano", "--weights", str(published))
    words = ["yolox-nano", "--data", str(data), "--recipe", "fine-tune", *taught, *SMALL, *WORDS]
    assert main([*words, "--output", str(tmp_path / "run"), "--allow-leakage"]) == 0
    provenance = read_provenance(tmp_path / "run" / "best.safetensors")
    assert provenance is not None
    assert provenance.teacher == {"model": "yolox-nano", "options": {}, "sha256": sha256(published)}
    assert provenance.options["num_classes"] == 1
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    terms = [[float(value) for name, value in row.items() if name.startswith("taught ")] for row in rows]
    assert all(len(values) == 3 and min(values) >= 0 for values in terms)

    sources, output = tmp_path / "sources.json", tmp_path / "small.safetensors"
    used = json.loads((tmp_path / "run" / "report.json").read_text())["files"]
    sources.write_text(json.dumps([{"licence": "Apache-2.0", **file} for file in used.values()]))
    files = ("--data", str(data), "--sources", str(sources), "--output", str(output))
    assert publish([str(tmp_path / "run"), *files, "--option", "num_classes=2"]) == 1  # another head
    assert not output.exists()
    assert publish([str(tmp_path / "run"), *files, "--option", "height=96"]) == 0
    record = json.loads(output.with_suffix(".json").read_text())
    shipped = read_provenance(output)
    assert shipped is not None
    assert record["options"] == shipped.options == {**provenance.options, "height": 96}


def student() -> tuple[models.ModelEntry, torch.nn.Module]:
    entry = models.entry("yolox-nano")
    return entry, models.module_from(entry, {"num_classes": 1, "labels": "person", "height": 64, "width": 96})


def test_teacher_gives_the_students_classes_only(data: Path, published: Path) -> None:
    entry, module = student()
    deployment = models.deployment_of(entry, module)
    teacher = open_teacher(published, "yolox-nano", student=deployment)

    class Task:
        model_options: ClassVar = {"labels": "person"}

        def criterion(self) -> torch.nn.Module:
            return torch.nn.Module()

        def loss(self, model: Any, criterion: Any, batch: Any, epoch: int) -> dict[str, torch.Tensor]:
            assert model.heads(batch["image"])[0].shape == (2, 6, 8, 12)
            return {}

    task = DetectionDistillationTask(Task(), teacher, weight=3.0, student=deployment)
    state = dict(teacher.model.state_dict())
    for name in [name for name in state if name.startswith("head.cls_preds.")]:
        state[name] = state[name][:1]  # person is COCO's first
    module.load_state_dict(state)
    batch = {"image": torch.rand(2, 3, 64, 96) * 255}
    same = task.loss(module, task.criterion(), batch, 0)
    assert all(value.item() == pytest.approx(0, abs=1e-5) for value in same.values())
    with torch.no_grad():
        module.head.obj_preds[0].bias.add_(1.0)
    other = task.loss(module, task.criterion(), batch, 0)
    assert other["taught objectness"].item() > 0.01
    assert other["taught box"].item() == pytest.approx(0, abs=1e-5)
    once = DetectionDistillationTask(Task(), teacher, weight=1.0, student=deployment)
    expected = 3 * once.loss(module, once.criterion(), batch, 0)["taught objectness"].item()
    assert other["taught objectness"].item() == pytest.approx(expected)


def test_teacher_without_the_class_is_refused(published: Path) -> None:
    entry, module = student()
    deployment = models.deployment_of(entry, module)
    teacher = open_teacher(published, "yolox-nano", student=deployment)

    class Task:
        model_options: ClassVar = {"labels": "forklift"}

    with pytest.raises(InputError, match="knows no 'forklift'"):
        DetectionDistillationTask(Task(), teacher, weight=1.0, student=deployment)


def test_frozen_parts_and_norms_stay_as_they_are_and_the_rest_learns(
    data: Path, published: Path, tmp_path: Path
) -> None:
    words = ["yolox-nano", "--data", str(data), "--recipe", "fine-tune", "--weights", str(published), *SMALL, *WORDS]
    words += ["--set", "frozen_norms=true", "--set", 'frozen=["backbone"]']
    assert main([*words, "--output", str(tmp_path / "run"), "--allow-leakage"]) == 0
    before, after = load_file(published), load_file(tmp_path / "run" / "best.safetensors")
    norms = [name for name in before if ".bn." in name and not name.endswith("num_batches_tracked")]
    assert len(norms) > 100
    backbone = [name for name in before if name.startswith("backbone.")]
    assert all(torch.equal(before[name], after[name]) for name in (*norms, *backbone))
    assert not torch.equal(before["head.stems.0.conv.weight"], after["head.stems.0.conv.weight"])
