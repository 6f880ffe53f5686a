"""Training of outlines: batches, views, targets, a training from the command line, and a network that learns."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("pycocotools")

from edgevis import models
from edgevis.data.instances import Instances
from edgevis.data.leakage import SplitCheck
from edgevis.data.polar_targets import BACKGROUND, COLUMNS, IGNORED, MISSING
from edgevis.data.rng import draw_at
from edgevis.layers.polar_code import point_count, polar_points
from edgevis.layers.polar_head import PolarHead, PolarMaps
from edgevis.models.polarmask import PolarMask
from edgevis.models.recipe_detection import InstanceRecipe
from edgevis.train import main
from edgevis.training.instance_images import random_view
from edgevis.training.task import TaskRequest, TrainingTask
from edgevis.training.tasks.instance_segment import InstanceTrainingTask, targets_of, training_task
from runtime.bundle.spec import Preprocess
from runtime.errors import InputError

SIDE = 128
OPTIONS = {"height": SIDE, "width": SIDE}


def write_instances(folder: Path, *, train: int = 4, val: int = 2) -> Path:
    """Discs and squares in two colours on dark noise, with 16-bit label masks, ``boxes_xyxy.json`` and splits."""
    draw = np.random.default_rng(3)
    boxes: dict[str, list[list[int]]] = {}
    rows = ["stem,split"]
    for number in range(train + val):
        image = draw.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
        ids = np.zeros((SIDE, SIDE), np.uint16)
        boxes[f"{number:03}"] = []
        for part in range(2):
            x, y = 32 + 64 * part + int(draw.integers(-6, 7)), int(draw.integers(30, SIDE - 30))
            radius = int(draw.integers(12, 24))
            shape = np.zeros(ids.shape, np.uint8)
            cv2.circle(shape, (x, y), radius, 1, -1)
            ids[shape > 0] = part + 1
            image[shape > 0] = (40, 40, 220) if part else (220, 80, 40)
            boxes[f"{number:03}"].append([x - radius, y - radius, x + radius + 1, y + radius + 1])
        for name, pixels in (("images", image), ("instances", ids)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name / f"{number:03}.png"), pixels)
        rows.append(f"{number:03},{'train' if number < train else 'val'}")
    (folder / "boxes_xyxy.json").write_text(json.dumps(boxes))
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


def task_of(data: Path, check: SplitCheck | None = None, **values: object) -> InstanceTrainingTask:
    entry = models.entry("polarmask")
    with torch.device("meta"):
        deployment = models.deployment_of(entry, models.module_from(entry, OPTIONS))
    recipe = InstanceRecipe(**{"epochs": 4, "learning_rate": 1e-3, "batch": 3, "held_out": 0.0, **values})
    return training_task(TaskRequest(data, recipe, deployment, OPTIONS, seed=5, check=check or SplitCheck()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_instances(tmp_path_factory.mktemp("instances"))


def test_batches_depend_on_seed_epoch_step_and_rank_only(data: Path) -> None:
    task = task_of(data, classes="disc")
    assert isinstance(task, TrainingTask)
    assert task.model_options == {"num_classes": 1, "labels": "disc"}
    assert (task.data["training images"], task.data["test images"], task.steps_per_epoch) == (4, 2, 1)
    places = [(epoch, step, rank) for epoch in (0, 3) for step in (0, 1) for rank in (0, 1)]
    first = [task.batch(*place) for place in places]
    again = [task_of(data, classes="disc").batch(*place) for place in reversed(places)][::-1]
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert one["image"].shape == (3, 3, SIDE, SIDE)
        assert one["targets"].shape == (3, point_count((SIDE, SIDE)), COLUMNS)
        assert (one["targets"][..., 0] >= 0).any()
    assert len({batch["image"].sum().item() for batch in first}) == len(places)


def test_rays_end_where_the_recipe_says(data: Path) -> None:
    """At a quarter of their size discs have too few pixels for 36 rays, and edges enough."""
    missing = {}
    for rays in ("pixels", "edges"):
        targets = task_of(data, classes="disc", rays=rays, scale=(0.25, 0.25)).batch(0, 0, 0)["targets"]
        learned = targets[targets[..., 0] >= 0]
        assert len(learned)
        missing[rays] = bool((learned[:, 5:] <= MISSING).any())
    assert missing == {"pixels": True, "edges": False}


def square(*, ignored: bool = False) -> Instances:
    ids = np.zeros((SIDE, SIDE), np.uint16)
    ids[40:80, 20:60] = 1
    image = np.repeat((ids * 200).astype(np.uint8)[..., None], 3, axis=2)
    return Instances(image, ids, np.array([0]), np.array([ignored]))


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), (2.5, 2.5)])
def test_pixels_move_with_the_image(scale: tuple[float, float]) -> None:
    spec = Preprocess(height=SIDE, width=SIDE, fit="letterbox", align="top-left")
    for seed in range(6):
        view = random_view(square(), draw_at(seed), spec, scale=scale, visible=0.0, flip=True)
        seen = view.image[..., 0] > 150
        assert (seen == (view.ids == 1)).mean() > 0.985
        if scale[0] < 1:
            assert (view.ids == 1).sum() == pytest.approx(40 * 40 * scale[0] ** 2, rel=0.1)
        assert not view.ignored.any()


def test_what_a_crop_leaves_too_little_of_is_ignored() -> None:
    spec = Preprocess(height=SIDE, width=SIDE, fit="letterbox", align="top-left")
    views = [random_view(square(), draw_at(seed), spec, scale=(3.0, 3.0), visible=0.9, flip=False) for seed in range(8)]
    shares = [float((view.ids == 1).sum()) / (40 * 40 * 9) for view in views]
    assert [bool(view.ignored[0]) for view in views] == [share < 0.9 for share in shares]
    assert any(share < 0.9 for share in shares)


def test_points_on_ignored_pixels_learn_nothing() -> None:
    points, strides = (part.numpy() for part in polar_points((SIDE, SIDE)))
    learned, ignored = (targets_of(square(ignored=flag), points, strides)[:, 0] for flag in (False, True))
    inside = ((points >= (20, 40)) & (points < (60, 80))).all(1)
    assert (learned[inside & (learned >= 0)] == 0).all()
    assert (learned >= 0).any()
    assert (ignored[inside] == IGNORED).all()
    assert (ignored[~inside] == BACKGROUND).all()


class TinyOutlines(PolarMask):
    """A PolarMask whose backbone and neck are a few convolutions, without statistics that must settle."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        channels = (3, 16, 32, 48, 48, 48, 48, 48)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(first, second, 3, 2, 1), nn.GroupNorm(4, second), nn.SiLU())
            for first, second in pairwise(channels)
        )
        self.bbox_head = PolarHead(48, 1, repeats=1, groups=4)

    def heads(self, image: torch.Tensor) -> PolarMaps:
        maps = []
        for number, stage in enumerate(self.stages):
            image = stage(image)
            if number >= 2:
                maps.append(image)
        result: PolarMaps = self.bbox_head(maps)
        return result


def test_a_network_learns_four_pictures(tmp_path: Path) -> None:
    """From random weights to good masks: targets, loss, decoding and evaluation agree."""
    folder = write_instances(tmp_path / "data", train=4, val=4)
    for number in range(4):
        for name in ("images", "instances"):
            (folder / name / f"{number + 4:03}.png").write_bytes((folder / name / f"{number:03}.png").read_bytes())
    boxes = json.loads((folder / "boxes_xyxy.json").read_text())
    boxes.update({f"{number + 4:03}": boxes[f"{number:03}"] for number in range(4)})
    (folder / "boxes_xyxy.json").write_text(json.dumps(boxes))
    check = SplitCheck(allow_leakage=True)
    task = task_of(folder, check, classes="disc", batch=4, scale=(1, 1), flip=False, jitter=0.0)
    torch.manual_seed(0)
    model, criterion = TinyOutlines(), task.criterion()
    steps = 120
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batch = task.batch(0, 0, 0)
    for _ in range(steps):
        terms = task.loss(model, criterion, batch, 0)
        optimizer.zero_grad()
        sum(terms.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        evaluation = task.test(model)
    assert evaluation is not None
    assert list(evaluation.figures) == ["mask AP", "mask AP50", "box AP", "box AP50"]
    assert evaluation.figures["mask AP"].value > 0.6
    assert evaluation.figures["box AP"].value > 0.6


def test_a_training_from_the_command_line(data: Path, tmp_path: Path) -> None:
    quick = {"epochs": 1, "steps_per_epoch": 1, "batch": 1, "held_out": 0.0, "validate_every": 0, "classes": "disc"}
    settings = [part for name, value in quick.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    options = [part for name, value in {**OPTIONS, "tower": 1}.items() for part in ("--option", f"{name}={value}")]
    output = tmp_path / "run"
    fixed = ["polarmask", "--recipe", "small", "--data", str(data), "--output", str(output), "--quiet"]
    assert main([*fixed, *options, *settings]) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["options"]["labels"] == "disc"
    assert "mask AP" in json.dumps(report)


def test_data_without_a_part_that_validates_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["polarmask", "--recipe", "small", "--data", str(data), "--output", str(tmp_path / "run"), "--quiet"]
    assert main([*fixed, "--set", "held_out=0.0"]) != 0
    assert "rows of the split val" in capsys.readouterr().err


def test_another_task_s_recipe_is_refused(data: Path) -> None:
    entry = models.entry("yolox-nano")
    with pytest.raises(InputError, match="InstanceRecipe"):
        training_task(TaskRequest(data, entry.recipes["paper"], replace(entry.deployment)))
