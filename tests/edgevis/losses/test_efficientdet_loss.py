"""EfficientDet's targets and loss against the reference, ATSS, ignored regions and weights by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgevis.layers.anchors import anchor_boxes, anchors_per_level
from edgevis.losses import EfficientDetLoss, match_atss, match_largest_iou, sigmoid_focal_loss
from edgevis.losses.anchor_matching import BACKGROUND, IGNORED, ignore_regions
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

GOLDEN = np.load(GOLDEN_FOLDER / "efficientdet_parts.npz")
CLASSES = 3


ANCHORS, LEVELS = anchor_boxes((128, 128)), anchors_per_level((128, 128))


def targets() -> Tensor:
    classes, images, boxes = (GOLDEN[f"target/{name}"] for name in ("classes_1based", "image_of_box", "boxes_yxyx"))
    ones = np.ones(len(classes))
    rows = np.column_stack([images, classes - 1, boxes[:, [1, 0, 3, 2]], ones, 0 * ones])
    return torch.from_numpy(rows[classes > 0].astype(np.float32))


def golden_rows(dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    """The raw rows made of the golden maps, which are leaves."""
    maps, parts = {}, []
    for level in range(3, 8):
        named = {kind: torch.from_numpy(GOLDEN[f"loss/{kind}_out_p{level}"]).to(dtype) for kind in ("box", "class")}
        rows = []
        for kind, width in (("box", 4), ("class", CLASSES)):
            maps[f"{kind}_p{level}"] = leaf = named[kind].requires_grad_()
            rows.append(leaf.permute(0, 2, 3, 1).reshape(len(leaf), -1, width))
        parts.append(torch.cat(rows, 2))
    return torch.cat(parts, 1), maps


def test_matching_is_the_reference() -> None:
    found = []
    for image in (0, 1):
        rows = targets()[targets()[:, 0] == image]
        matched = match_largest_iou(ANCHORS, rows[:, 2:6])
        found += [(image, place, int(rows[matched[place], 1])) for place in (matched >= 0).nonzero()[:, 0].tolist()]
    names = ("pos_image", "pos_anchor", "pos_class")
    assert found == list(zip(*(GOLDEN[f"target/{name}"].tolist() for name in names), strict=True))


@pytest.mark.parametrize(("case", "smoothing"), [("default", 0.0), ("smooth0.01", 0.01)])
def test_the_loss_is_the_reference(case: str, smoothing: float) -> None:
    rows, maps = golden_rows()
    terms = EfficientDetLoss(smoothing=smoothing)(rows, targets(), size=(128, 128))
    total = terms["class"] + terms["box"]
    total.backward()
    assert float(total.detach()) == pytest.approx(float(GOLDEN[f"loss/{case}/total"]), rel=1e-5)
    assert float(terms["class"].detach()) == pytest.approx(float(GOLDEN[f"loss/{case}/class"]), rel=1e-5)
    assert float(terms["box"].detach()) == pytest.approx(50 * float(GOLDEN[f"loss/{case}/box"]), rel=1e-5)
    for name, leaf in maps.items():
        if f"loss/{case}/grad_{name}" in GOLDEN:
            expected = GOLDEN[f"loss/{case}/grad_{name}"]
            np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_two_boxes_that_claim_one_anchor() -> None:
    """The first box has the anchor, and the first of equally good anchors is claimed."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 5, 5]])
    assert match_largest_iou(anchors, boxes).tolist() == [0, BACKGROUND, BACKGROUND]
    assert match_largest_iou(anchors, boxes[:0]).tolist() == [BACKGROUND] * 3


def test_atss_by_its_definition() -> None:
    """Algorithm 1, written out for one box."""
    box = torch.tensor([[30.0, 20.0, 90.0, 100.0]])
    centres = (ANCHORS[:, :2] + ANCHORS[:, 2:]) / 2
    candidates, first = [], 0
    for count in LEVELS:
        distance = ((centres[first : first + count] - torch.tensor([60.0, 60.0])) ** 2).sum(1)
        candidates += (distance.argsort(stable=True)[: min(81, count)] + first).tolist()
        first += count
    low, high = torch.maximum(ANCHORS[:, :2], box[:, :2]), torch.minimum(ANCHORS[:, 2:], box[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    overlap = shared / ((ANCHORS[:, 2:] - ANCHORS[:, :2]).prod(1) + 60 * 80 - shared)
    near = overlap[candidates]
    threshold = near.mean() + near.std()
    expected = [
        place
        for place in sorted(candidates)
        if overlap[place] >= threshold and 30 < centres[place, 0] < 90 and 20 < centres[place, 1] < 100
    ]
    matched = match_atss(ANCHORS, box, LEVELS, per_place=9)
    assert (matched >= 0).nonzero()[:, 0].tolist() == expected
    assert len(expected) > 3
    loss = EfficientDetLoss(assignment="atss")
    rows = torch.zeros(1, len(ANCHORS), 4 + CLASSES)
    row = torch.tensor([[0, 1, *box[0].tolist(), 1, 0]])
    assert float(loss(rows, row, size=(128, 128))["box"]) > 0
    assert match_atss(ANCHORS, box[:0], LEVELS, per_place=9).eq(BACKGROUND).all()


def test_ignored_regions_and_weights() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [100, 100, 110, 110], [104, 100, 114, 110]])
    matched = torch.tensor([0, BACKGROUND, BACKGROUND])
    regions = torch.tensor([[0.0, 0, 10, 10], [100, 90, 106, 120]])
    assert ignore_regions(matched, anchors, regions).tolist() == [0, IGNORED, BACKGROUND]

    def class_term(*rows: list[float]) -> float:
        target = torch.tensor(rows, dtype=torch.float32).reshape(-1, 8)
        return float(EfficientDetLoss()(torch.zeros(1, len(ANCHORS), 5), target, size=(128, 128))["class"])

    # At probability 1/2 everywhere each anchor that counts has the same loss.
    background = float(sigmoid_focal_loss(torch.zeros(()), torch.zeros(())))
    assert class_term() == pytest.approx(len(ANCHORS) * background, rel=1e-4)
    region = torch.tensor([[64.0, 0, 128, 128]])
    ignored = int((ignore_regions(torch.full((len(ANCHORS),), BACKGROUND), ANCHORS, region) == IGNORED).sum())
    assert 100 < ignored < len(ANCHORS)
    expected = (len(ANCHORS) - ignored) * background
    assert class_term([0, 0, 64, 0, 128, 128, 1, 1]) == pytest.approx(expected, rel=1e-4)
    box = (0.0, 0.0, 40.0, 40.0)
    learned = int((match_largest_iou(ANCHORS, torch.tensor([box])) >= 0).sum())
    half = float(sigmoid_focal_loss(torch.zeros(()), torch.tensor(0.5)))
    expected = ((len(ANCHORS) - learned) * background + learned * half) / (learned + 1)
    assert class_term([0, 0, *box, 0.5, 0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("rows", "target", "message"),
    [
        (torch.zeros(1, 2, 5), torch.zeros(0, 8), "rows have shape"),
        (torch.full((1, 3069, 5), float("nan")), torch.zeros(0, 8), "NaN"),
        (torch.zeros(1, 3069, 5), torch.zeros(0, 6), "targets have shape"),
        (torch.zeros(1, 3069, 5), torch.tensor([[1.0, 0, 0, 0, 1, 1, 1, 0]]), "an image or class beyond"),
        (torch.zeros(1, 3069, 5), torch.tensor([[0.0, 1, 0, 0, 1, 1, 1, 0]]), "an image or class beyond"),
        (torch.zeros(1, 3069, 5), torch.tensor([[0.0, 0, 1, 0, 1, 1, 1, 0]]), "whose end is not behind its start"),
    ],
)
def test_wrong_inputs_are_refused(rows: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EfficientDetLoss()(rows, target, size=(128, 128))
