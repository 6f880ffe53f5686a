"""PolarMask: counts, outputs of its graph, options, names of published backbones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgevis import models
from edgevis.layers.polar_code import point_count, polar_points
from edgevis.models.polarmask import PolarMask
from runtime.errors import InputError, ModelError

pytestmark = pytest.mark.torch


def count(module: nn.Module) -> int:
    return sum(x.numel() for x in module.parameters())


@pytest.fixture(scope="module")
def model() -> PolarMask:
    torch.manual_seed(0)
    return PolarMask(num_classes=2, height=128, width=256, tower=1).eval()


def test_neck_and_head_have_the_edge_size_and_the_head_the_paper_s() -> None:
    with torch.device("meta"):
        small, paper = PolarMask(num_classes=1), PolarMask(channels=256, tower=4)
        regnet = PolarMask(backbone="regnetx_004")
    assert count(small.neck) + count(small.bbox_head) == 1_730_356
    assert count(paper.bbox_head) == 7_362_947
    assert count(regnet) == 6_614_435


def test_the_graph_is_what_the_heads_say(model: PolarMask) -> None:
    size = (128, 256)
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        scores, boxes, polygons = model.outline(image)
        rows = model.heads(image).rows()
    points, _ = polar_points(size)
    rows_of_graph = point_count(size)
    assert scores.shape == (2, rows_of_graph, 2)
    assert boxes.shape == (2, rows_of_graph, 4)
    assert polygons.shape == (2, rows_of_graph, 36, 2)
    # The middle of the second level's first map is the first point of its rows.
    at = 16 * 32
    left, top, right, bottom = rows[1, at, :4].tolist()
    x, y = points[at].tolist()
    assert boxes[1, at].tolist() == pytest.approx([x - left, y - top, x + right + 1, y + bottom + 1], rel=1e-5)
    down, aside = rows[1, at, 4].item(), rows[1, at, 4 + 9].item()
    assert polygons[1, at, 0].tolist() == pytest.approx([x + 0.5, y + 1 + down], rel=1e-5)
    assert polygons[1, at, 9].tolist() == pytest.approx([x + 1 + aside, y + 0.5], rel=1e-5)
    centerness, classes = rows[1, at, 40].sigmoid(), rows[1, at, 41:].sigmoid()
    torch.testing.assert_close(scores[1, at], classes * (centerness + 0.5) / 1.5)


def test_distances_of_untrained_weights_stay_finite(model: PolarMask) -> None:
    large = PolarMask(num_classes=1, height=128, width=128, tower=1).eval()
    with torch.no_grad():
        large.bbox_head.polar_mask.bias.fill_(1e4)  # type: ignore[union-attr]
        scores, boxes, polygons = large.outline(torch.zeros(1, 3, 128, 128))
    assert torch.isfinite(polygons).all()
    assert polygons.min() >= 0
    assert polygons.max() <= 128
    assert scores.max() <= 1
    assert torch.isfinite(boxes).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 100}, "height is 100"),
        ({"backbone": "resnet50"}, "backbone is 'resnet50'"),
        ({"channels": 100}, "channels is 100"),
        ({"tower": 0}, "tower is 0"),
        ({"num_classes": 2, "labels": "a"}, "labels is 'a' for 2 classes"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        models.create("polarmask", **options)


def test_images_that_do_not_fit_are_refused(model: PolarMask) -> None:
    with pytest.raises(InputError, match="multiples of 128"):
        model.heads(torch.zeros(1, 3, 128, 100))
