"""An evaluation in training measures what a predictor will do: the same pixels into the model, the same answers out.

Each task is evaluated on pictures of several sizes, and the same files go through ``Predictor`` on a real engine.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgevis import Predictor, models
from edgevis.metrics import SegmentationScore, box_fit, dice_per_volume
from edgevis.training.loop import evaluated
from edgevis.training.task import TaskRequest
from edgevis.training.tasks import classify, few_shot_segment, reid, segment
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec
from runtime.images.preprocess import Preprocessor

from bundles import (
    FP32_TOLERANCE,
    TINY_PREPROCESS,
    Array,
    Tiny,
    expected_embeddings,
    textured,
    write_tiny_bundle,
)
from segmentation_bundles import FEW_SHOT, few_shot_onnx, onnx_of, write

# Larger and smaller than the input of 32 x 16, of other proportions, and of its own size.
SIZES = ((64, 32), (32, 16), (301, 144), (90, 200), (20, 9), (450, 449))


class Embedder(nn.Module):
    """The tiny bundle's model in NumPy, which keeps what it answered."""

    def __init__(self, tiny: Tiny) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros(1))
        self._weights, self.rows = tiny.weights, list[Array]()

    def encode(self, image: Tensor) -> Tensor:
        found = expected_embeddings(image.numpy(), self._weights)
        self.rows += list(found / np.linalg.norm(found, axis=1, keepdims=True))
        return torch.from_numpy(found)

    embed = encode


def _table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _picture(path: Path, seed: int, size: tuple[int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), textured(seed, *size))
    return path


def _predicted(bundle: Path, paths: Sequence[Path]) -> Array:
    with Predictor(bundle) as predictor:
        return np.asarray(predictor.embed([str(path) for path in paths]))


def test_persons(tmp_path: Path) -> None:
    tiny = Tiny()
    data, rows = tmp_path / "data", []
    for number, size in enumerate(SIZES * 4):
        person, camera = number % len(SIZES) // 2, 1 + number % 2
        split = ("train", "train", "query", "gallery")[number // len(SIZES)]
        if split in ("query", "gallery"):
            person, camera = person + 10, 1 if split == "query" else 2
        name = f"images/{number:02}.png"
        _picture(data / name, number, size)
        rows.append((name, person, camera, split))
    _table(data / "labels.csv", ("path", "pid", "camid", "split"), rows)
    recipe = models.entry("osnet-x0-25").recipes["small"].with_values({"held_out": 0.0})
    task = reid.training_task(TaskRequest(data, recipe, tiny.deployment))
    model = Embedder(tiny)
    assert evaluated(model, task.test) is not None
    paths = [data / row[0] for split in ("query", "gallery") for row in rows if row[3] == split]
    expected = _predicted(write_tiny_bundle(tmp_path / "t.edgevis", tiny), paths)
    np.testing.assert_allclose(np.stack(model.rows), expected, atol=FP32_TOLERANCE)


@pytest.mark.parametrize(
    ("fit", "interpolation"), [("center-crop", "area"), ("stretch", "linear"), ("letterbox", "cubic")]
)
def test_classes(fit: Any, interpolation: Any, tmp_path: Path) -> None:
    tiny = Tiny("classify", preprocess=replace(TINY_PREPROCESS, fit=fit, interpolation=interpolation))
    data = tmp_path / "data"
    rows = []
    for number in range(5):
        for index, size in enumerate(SIZES):
            name = f"{number}/{index}.png"
            _picture(data / name, 10 * number + index, size)
            rows.append((name, number, "train" if number < 3 else "val"))
    _table(data / "labels.csv", ("path", "class_name", "split"), rows)
    values = {"held_out": 0.0, "test_shots": [1], "test_episodes": 2, "test_query": 2, "way": 2, "shot": 1, "query": 1}
    recipe = models.entry("mobilenetv2").recipes["small"].with_values(values)
    task = classify.training_task(TaskRequest(data, recipe, tiny.deployment))
    model = Embedder(tiny)
    assert evaluated(model, task.test) is not None
    expected = _predicted(
        write_tiny_bundle(tmp_path / "t.edgevis", tiny), [data / row[0] for row in rows if row[2] == "val"]
    )
    np.testing.assert_allclose(np.stack(model.rows), expected, atol=FP32_TOLERANCE)


SIDE = 32
GREY = Preprocess(SIDE, SIDE, "GRAY")
SEGMENT = Deployment(
    "segment",
    (Graph("segment", (GREY.input,), (TensorSpec("logits", "float32", ("N", 1, SIDE, SIDE)),)),),
    GREY,
    {"labels": ["bright"], "threshold": 0.7},
    max_batch=4,
)


class Levels(nn.Module):
    """Bright where a pixel is above 0.7."""

    def __init__(self) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        return (image - 0.7) * 40


def test_masks(tmp_path: Path) -> None:
    data, rows = tmp_path / "data", []
    (data / "masks").mkdir(parents=True)
    paths = []
    # Of two training images one is set aside.
    for number, (seed, size) in enumerate([(20, (97, 61)), (21, (97, 61)), *enumerate(SIZES, 1)]):
        paths.append(_picture(data / "images" / f"{number}.png", seed, size))
        grey = cv2.cvtColor(textured(seed, *size), cv2.COLOR_BGR2GRAY)
        cv2.imwrite(str(data / "masks" / f"{number}.png"), (cv2.blur(grey, (5, 5)) > 170).astype(np.uint8))
        rows.append((number, "train" if number < 2 else "val"))
    _table(data / "index.csv", ("stem", "split"), rows)
    nodes = [("Sub", ["image", "high"], "above"), ("Mul", ["above", "steep"], "logits")]
    bundle = write(tmp_path / "t.edgevis", SEGMENT, {"segment": onnx_of(SEGMENT.graphs[0], nodes)}, "onnxruntime")
    with Predictor(bundle) as predictor:
        found = [result.mask for result in predictor.predict([str(path) for path in paths])]
    targets = [cv2.imread(str(data / "masks" / path.name), cv2.IMREAD_UNCHANGED) > 0 for path in paths]
    expected = dice_per_volume(found[2:], targets[2:], [path.stem for path in paths[2:]])
    recipe = models.entry("enet").recipes["small"].with_values({"held_out": 0.5})
    task = segment.training_task(TaskRequest(data, recipe, SEGMENT))
    test = evaluated(Levels(), task.test)
    assert test is not None
    # The last digit of a logit may put a pixel on the other side of the threshold.
    np.testing.assert_allclose(sorted(test.figures["Dice"].samples), sorted(expected.values()), atol=2e-3)
    assert 0.1 < np.mean(list(expected.values())) < 1, "the measure has something to tell apart"
    held = evaluated(Levels(), task.validate)
    assert held is not None
    fits = []
    for mask, target in zip(found[:2], targets[:2], strict=True):
        ys, xs = np.nonzero(target)
        fits.append(box_fit(mask, [xs.min(), ys.min(), xs.max(), ys.max()]))
    assert abs(fits[0] - fits[1]) > 0.02, "they can be told apart"
    assert min(abs(held.figures["box fit"].value - fit) for fit in fits) < 2e-3


class Colours(nn.Module):
    """The few-shot bundle's model: the object is where a pixel is close to the mean colour under the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.device = nn.Parameter(torch.zeros(1))

    def support(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        area = mask.sum((1, 2))
        return (image * mask[:, None]).sum((2, 3)) / area[:, None], area[:, None, None]

    def query(self, image: Tensor, mean: Tensor, area: Tensor) -> Tensor:
        apart = (image[:, None] - mean[None, :, :, None, None]).square().sum(2)
        margin = (0.16 - apart) * 40
        return torch.stack([torch.zeros_like(margin), margin], dim=2)


def test_few_shot_masks(tmp_path: Path) -> None:
    """FSS-1000's layout: queries in turn, so that four episodes ask for each image of both novel classes once."""
    data, size = tmp_path / "data", iter(SIZES * 5)
    masks: dict[Path, Array] = {}
    for number in range(5):
        for index in (1, 2):
            height, width = next(size)
            path = _picture(data / f"class{number}" / f"{index}.jpg", 10 * number + index, (height, width))
            mask = np.zeros((height, width), bool)
            mask[height // 4 : -height // 4, width // 3 : -width // 4] = True
            cv2.imwrite(str(path.with_suffix(".png")), mask.astype(np.uint8) * 255)
            masks[path] = mask
    bundle = write(tmp_path / "t.edgevis", FEW_SHOT, few_shot_onnx(), "onnxruntime")
    score = SegmentationScore([0, 4])
    for class_id in (0, 4):
        images = [path for path in masks if path.parent.name == f"class{class_id}"]
        for query, support in (images, images[::-1]):
            with Predictor(bundle) as predictor:
                predictor.enroll("it", str(support), masks=masks[support])
                score.add(predictor.predict(str(query)).mask, masks[query], class_id)
    values = {"fold": 0, "test_shots": [1], "test_episodes": 4}
    recipe = models.entry("hsnet-hm").recipes["small"].with_values(values)
    task = few_shot_segment.training_task(TaskRequest(data, recipe, FEW_SHOT))
    found = evaluated(Colours(), task.test)
    assert found is not None
    assert found.split == "novel classes", "all were asked for"
    assert found.figures["1-shot mIoU"].value == pytest.approx(score.mean_iou, abs=2e-3)
    assert found.figures["1-shot FB-IoU"].value == pytest.approx(score.fb_iou, abs=2e-3)
    assert 0.02 < score.mean_iou < 1, "the measure has something to tell apart"


def test_training_sees_the_same_pixels(tmp_path: Path) -> None:
    """Of segmentation, whose training images keep their size and place."""
    preprocess = Preprocessor(GREY)
    image = textured(3, 301, 144)
    example = segment.Example(image, np.ones(image.shape[:2], bool), np.zeros((0, 4), np.int64))
    np.testing.assert_array_equal(segment.fitted(example, preprocess).image, preprocess.fit(image))
