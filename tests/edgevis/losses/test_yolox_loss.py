"""YOLOX's assignment and loss by their definitions, and what they make of weights and ignored regions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgevis.layers.grid_boxes import cell_grid, decode_cells
from edgevis.losses import YOLOXLoss, sim_ota
from edgevis.losses._boxes import ImageTargets, targets_by_image
from runtime.errors import InputError

SIZE = (64, 96)
STRIDES = (8, 16, 32)
CORNERS, STEPS = cell_grid(SIZE, STRIDES)
CENTRES = CORNERS + STEPS / 2
CLASSES = 3


def row(
    box: tuple[float, ...], label: int = 0, *, image: int = 0, weight: float = 1.0, ignored: int = 0
) -> list[float]:
    return [image, label, *box, weight, ignored]


def random_rows(images: int = 1, *, seed: int = 0) -> Tensor:
    return torch.randn(images, len(CORNERS), 5 + CLASSES, generator=torch.Generator().manual_seed(seed))


def iou(first: list[float], second: list[float]) -> float:
    low, high = [max(a, b) for a, b in zip(first[:2], second[:2], strict=True)], list(map(min, first[2:], second[2:]))
    shared = max(0.0, high[0] - low[0]) * max(0.0, high[1] - low[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def assigned_by_definition(rows: Tensor, image: ImageTargets) -> dict[int, int]:
    """Section 2.1 of the paper, one cell and one object at a time."""
    boxes = decode_cells(rows[:, :4], CORNERS, STEPS).tolist()
    wanted: dict[int, list[tuple[float, int]]] = {}
    for number, (target, label) in enumerate(zip(image.boxes.tolist(), image.classes.tolist(), strict=True)):
        costs, overlaps = [], []
        for cell, ((x, y), (step,)) in enumerate(zip(CENTRES.tolist(), STEPS.tolist(), strict=True)):
            insides, nears = [], []
            for other in image.boxes.tolist():
                middle = (other[0] + other[2]) / 2, (other[1] + other[3]) / 2
                insides.append(other[0] < x < other[2] and other[1] < y < other[3])
                nears.append(max(abs(x - middle[0]), abs(y - middle[1])) < 2.5 * step)
            if not any(map(max, insides, nears)):
                continue
            overlap = iou(boxes[cell], target)
            joint = (rows[cell, 5:].sigmoid() * rows[cell, 4].sigmoid()).sqrt()
            one_hot = functional.one_hot(torch.tensor(label), CLASSES).float()
            cost = float(functional.binary_cross_entropy(joint, one_hot, reduction="sum")) - 3 * math.log(
                overlap + 1e-8
            )
            costs.append((cost + 1e5 * (not (insides[number] and nears[number])), cell))
            overlaps.append(overlap)
        count = max(1, int(sum(sorted(overlaps)[-10:])))
        for cost, cell in sorted(costs)[:count]:
            wanted.setdefault(cell, []).append((cost, number))
    return {cell: min(costs)[1] for cell, costs in sorted(wanted.items())}


@pytest.mark.parametrize("seed", range(4))
def test_sim_ota_by_its_definition(seed: int) -> None:
    rows = random_rows(seed=seed)
    rows[..., :2] += 0.5
    rows[..., 2:4] = rows[..., 2:4] * 0.3 + 1.0
    target = torch.tensor(
        [row((8, 8, 50, 60)), row((20, 10, 60, 50), 1), row((80, 40, 90, 52), 2), row((8, 8, 48, 60))]
    )
    image = targets_by_image(target, 1, CLASSES)[0]
    boxes = decode_cells(rows[0, :, :4], CORNERS, STEPS)
    cells, objects = sim_ota(boxes, rows[0, :, 4], rows[0, :, 5:], CENTRES, STEPS, image)
    expected = assigned_by_definition(rows[0], image)
    assert dict(zip(cells.tolist(), objects.tolist(), strict=True)) == expected
    assert len(expected) > 4


def terms_by_definition(rows: Tensor, image: ImageTargets) -> dict[str, float]:
    boxes = decode_cells(rows[:, :4], CORNERS, STEPS)
    learned = assigned_by_definition(rows, image)
    terms = {"iou": 0.0, "class": 0.0, "objectness": 0.0, "l1": 0.0}
    for cell in range(len(rows)):
        should = torch.tensor(float(cell in learned))
        terms["objectness"] += float(functional.binary_cross_entropy_with_logits(rows[cell, 4], should))
        if cell in learned:
            target = image.boxes[learned[cell]]
            overlap = iou(boxes[cell].tolist(), target.tolist())
            terms["iou"] += 5 * (1 - overlap**2)
            right = functional.one_hot(image.classes[learned[cell]], CLASSES) * overlap
            terms["class"] += float(functional.binary_cross_entropy_with_logits(rows[cell, 5:], right, reduction="sum"))
            centre, sides = (target[:2] + target[2:]) / 2, target[2:] - target[:2]
            code = torch.cat([(centre - CORNERS[cell]) / STEPS[cell], torch.log(sides / STEPS[cell])])
            terms["l1"] += float((rows[cell, :4] - code).abs().sum())
    return {name: value / len(learned) for name, value in terms.items()}


def test_the_loss_by_its_definition() -> None:
    rows = random_rows()
    target = torch.tensor([row((8, 8, 50, 60), 2), row((70, 10, 90, 50), 1)])
    expected = terms_by_definition(rows[0], targets_by_image(target, 1, CLASSES)[0])
    found = {name: float(value) for name, value in YOLOXLoss(l1=True)(rows, target, size=SIZE).items()}
    assert found == pytest.approx(expected, rel=1e-4)
    del expected["l1"]
    found = {name: float(value) for name, value in YOLOXLoss()(rows, target, size=SIZE).items()}
    assert found == pytest.approx(expected, rel=1e-4)


def test_images_of_a_batch_share_the_number_of_learned_cells() -> None:
    rows = random_rows(2)
    target = torch.tensor([row((8, 8, 50, 60)), row((70, 10, 90, 50), 1, image=1)])
    both = YOLOXLoss()(rows, target, size=SIZE)
    images = targets_by_image(target, 2, CLASSES)
    counts = [len(assigned_by_definition(rows[number], image)) for number, image in enumerate(images)]
    alone = [terms_by_definition(rows[number], image) for number, image in enumerate(images)]
    for name, value in both.items():
        expected = sum(count * terms[name] for count, terms in zip(counts, alone, strict=True)) / sum(counts)
        assert float(value) == pytest.approx(expected, rel=1e-4)


def test_without_objects_only_objectness_is_learned() -> None:
    rows = random_rows().requires_grad_()
    terms = YOLOXLoss(l1=True)(rows, torch.zeros(0, 8), size=SIZE)
    assert {name: float(value) for name, value in terms.items() if name != "objectness"} == dict.fromkeys(
        ("iou", "class", "l1"), 0.0
    )
    sum(terms.values()).backward()
    assert rows.grad[..., 4].gt(0).all()
    assert not rows.grad[..., :4].any()


def test_ignored_regions_have_no_objectness_loss() -> None:
    rows = random_rows().requires_grad_()
    target = torch.tensor([row((8, 8, 40, 40)), row((48, 0, 96, 64), ignored=1)])
    sum(YOLOXLoss()(rows, target, size=SIZE).values()).backward()
    inside = (torch.tensor([48.0, 0.0]) < CENTRES).all(1)
    learned = rows.grad[0, :, :4].abs().sum(1) > 0
    assert not rows.grad[0, inside & ~learned, 4].any()
    assert rows.grad[0, ~inside, 4].all()


def test_a_weight_is_the_objectness_that_is_learned() -> None:
    rows = random_rows()
    whole = YOLOXLoss()(rows, torch.tensor([row((8, 8, 50, 60))]), size=SIZE)
    half = YOLOXLoss()(rows, torch.tensor([row((8, 8, 50, 60), weight=0.5)]), size=SIZE)
    for name in ("iou", "class"):
        assert float(half[name]) == pytest.approx(float(whole[name]) / 2, rel=1e-5)
    cells = list(assigned_by_definition(rows[0], targets_by_image(torch.tensor([row((8, 8, 50, 60))]), 1, CLASSES)[0]))
    moved = float(rows[0, cells, 4].mean() / 2)  # of -y log p - (1 - y) log(1 - p), when y goes from 1 to 1/2
    assert float(half["objectness"] - whole["objectness"]) == pytest.approx(moved, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(1, 3, 8), "rows have shape"),
        (random_rows() * float("nan"), "NaN"),
        (torch.zeros(4, 8), "rows have"),
    ],
)
def test_wrong_rows_are_refused(rows: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        YOLOXLoss()(rows, torch.zeros(0, 8), size=SIZE)
