"""A PyTorch detector of red and green squares of 8 pixels, whose weights are written by hand, and pictures of them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis.models import ModelEntry
from runtime.bundle.spec import Deployment, Graph, Preprocess, TensorSpec

from bundles import Array
from detection_bundles import CELL, CELLS, LABELS, SIDE, board, cell_boxes

_PREPROCESS = Preprocess(SIDE, SIDE, "RGB", fit="letterbox", pad_value=0, interpolation="nearest")
_OUTPUTS = (
    TensorSpec("scores", "float32", ("N", CELLS, len(LABELS))),
    TensorSpec("boxes", "float32", ("N", CELLS, 4)),
)
GRAPH = Graph("detect", (_PREPROCESS.input,), _OUTPUTS, float32_outputs=("scores", "boxes"))
DEPLOYMENT = Deployment("detect", (GRAPH,), _PREPROCESS, {"labels": list(LABELS)}, max_batch=4)


class TinyDetector(nn.Module):
    """image (N, 3, 64, 64) -> scores (N, 64, 2) and boxes (N, 64, 4): a convolution, a depthwise one, two predictors.

    A cell's score is how red or green it is; the brighter a cell, the larger its box, by at most two pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, CELL, stride=CELL, groups=4)
        self.scores = nn.Conv2d(4, len(LABELS), 1)
        self.growth = nn.Conv2d(4, 4, 1)
        self.register_buffer("cells", torch.from_numpy(cell_boxes())[None])
        self.load_state_dict(
            {
                "stem.weight": torch.tensor([[4.0, -3, -3], [-3, 4, -3], [-3, -3, 4], [1, 1, 1]]).reshape(4, 3, 1, 1),
                "stem.bias": torch.tensor([0.2, 0.1, 0.3, 0.1]),
                "depthwise.weight": torch.full((4, 1, CELL, CELL), 1 / CELL**2),
                "depthwise.bias": torch.tensor([-0.1, -0.2, 0.1, 0.1]),
                "scores.weight": torch.tensor([[2.5, -1, -1, 0.1], [-1, 2.5, -1, 0.1]]).reshape(2, 4, 1, 1),
                "scores.bias": torch.tensor([-3.5, -3.2]),
                "growth.weight": torch.tensor([-0.5, -0.5, 0.5, 0.5]).reshape(4, 1, 1, 1).repeat(1, 4, 1, 1),
                "growth.bias": torch.tensor([-0.1, -0.2, 0.1, 0.2]),
                "cells": torch.from_numpy(cell_boxes())[None],
            }
        )

    def detect(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.silu(self.depthwise(functional.silu(self.stem(image))))
        scores = torch.sigmoid(self.scores(x)).flatten(2).transpose(1, 2)
        growth = 2 * torch.tanh(self.growth(x)).flatten(2).transpose(1, 2)
        return scores, self.get_buffer("cells") + growth


def tiny_detector_entry() -> ModelEntry:
    """The declaration of the detector, as a file in edgevis/models would make it."""
    parameters = sum(parameter.numel() for parameter in TinyDetector().parameters())
    return ModelEntry("tiny-detector", TinyDetector, DEPLOYMENT, "none: of the tests", "Apache-2.0", parameters)


def weights_of(path: Path) -> Path:
    """Write the weights as a checkpoint, so that a build takes them for trained ones."""
    from safetensors.torch import save_file

    save_file(TinyDetector().state_dict(), path)
    return path


def squares(count: int, *, seed: int = 0) -> list[tuple[Array, list[tuple[int, int, int]]]]:
    """Pictures on dark noise, and of each the objects: row, column and label of a cell.

    Each has three red or green squares, bright or pale, and a blue one, which is no object.
    """
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        places = random.choice(CELLS, 4, replace=False)
        objects, cells = [], []
        for place in places[:3].tolist():
            row, column = divmod(place, SIDE // CELL)
            label = int(random.integers(2))
            color = random.integers(0, 80, 3)
            color[2 - label] = random.integers(170, 256)  # BGR
            objects.append((row, column, label))
            cells.append((row, column, tuple(color.tolist())))
        row, column = divmod(int(places[3]), SIDE // CELL)
        image = board(*cells, (row, column, (220, 40, 40)))
        made.append((np.maximum(image, random.integers(0, 40, image.shape, np.uint8)), objects))
    return made


def write_squares(folder: Path, count: int, *, labelled: bool = False, seed: int = 0) -> Path:
    """Write such pictures; ``labelled`` adds COCO's JSON of a split to train, one to validate and one to test."""
    made = squares(count, seed=seed)
    (folder / "images").mkdir(parents=True)
    for number, (image, _) in enumerate(made):
        assert cv2.imwrite(str(folder / "images" / f"{number:03}.png"), image)
    categories = [{"id": index, "name": label} for index, label in enumerate(LABELS)]
    thirds = {"train": range(count // 3), "val": range(count // 3, 2 * count // 3)}
    for split, numbers in {**thirds, "test": range(2 * count // 3, count)}.items() if labelled else ():
        images = [{"id": number, "file_name": f"{number:03}.png"} for number in numbers]
        annotations = [
            {
                "id": 10 * number + index,
                "image_id": number,
                "category_id": label,
                "bbox": [column * CELL, row * CELL, CELL, CELL],
            }
            for number in numbers
            for index, (row, column, label) in enumerate(made[number][1])
        ]
        path = folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder
