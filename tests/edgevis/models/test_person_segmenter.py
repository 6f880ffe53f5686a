"""The person segmenter: its count, its maps, published weights in its backbone, and that it learns from boxes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from edgevis import models
from edgevis.losses import BoxTightnessLoss
from edgevis.models.person_segmenter import PersonSegmenter
from edgevis.training.warm_start import load_backbone
from runtime.errors import ModelError

pytestmark = pytest.mark.torch

SIDE = 64


@pytest.fixture(scope="module")
def net() -> PersonSegmenter:
    torch.manual_seed(0)
    model = models.create("person-segmenter", side=SIDE)
    assert isinstance(model, PersonSegmenter)
    return model.eval()


def test_maps_and_logits(net: PersonSegmenter) -> None:
    assert models.parameters(net) == models.entry("person-segmenter").parameters
    image = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        maps, logits = net.backbone.maps(image), net.segment(image)
    shapes = [(count, SIDE // step) for count, step in ((16, 2), (24, 4), (40, 8), (112, 16))]
    assert [(x.shape[1], x.shape[2]) for x in maps] == shapes
    assert logits.shape == (2, 1, SIDE, SIDE)
    # Half the side, enlarged.
    with torch.no_grad():
        half = net.decoder(maps)
    torch.testing.assert_close(functional.interpolate(half, size=(SIDE, SIDE), mode="bilinear"), logits)


def test_published_weights_begin_its_backbone(net: PersonSegmenter, tmp_path: Path) -> None:
    """Those of the whole EfficientNet-Lite0, whose maps the backbone then has."""
    published = models.create("efficientnet-lite0", side=SIDE).eval()
    save_file(published.state_dict(), str(tmp_path / "lite0.safetensors"))
    own = PersonSegmenter(side=SIDE).eval()
    load_backbone(own, tmp_path / "lite0.safetensors")
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        x = published.stem(image)  # type: ignore[operator]
        for stage in list(published.blocks)[:5]:  # type: ignore[arg-type]
            x = stage(x)
        torch.testing.assert_close(own.backbone.maps(image)[-1], x)


def test_deployment(net: PersonSegmenter) -> None:
    deployment = models.deployment_of(models.entry("person-segmenter"), net)
    assert deployment.postprocess["labels"] == ["person"]
    assert (deployment.preprocess.width, deployment.preprocess.color) == (SIDE, "RGB")
    assert deployment.preprocess.mean[0] * 255 == pytest.approx(127)
    with pytest.raises(ModelError, match="side is 72"):
        models.create("person-segmenter", side=72)


def test_learns_from_boxes() -> None:
    """Bright rectangles on grey: after some steps what lies in the boxes is told from the rest."""
    torch.manual_seed(0)
    net = models.create("person-segmenter", side=SIDE).train()
    draw = torch.Generator().manual_seed(0)
    image = 0.3 * torch.randn(4, 3, SIDE, SIDE, generator=draw)
    rows = []
    for number in range(4):
        left, top = torch.randint(4, 24, (2,), generator=draw).tolist()
        image[number, :, top : top + 32, left : left + 24] += 1.5
        rows.append([number, 0, left, top, left + 23, top + 31])
    boxes, loss_of = torch.tensor(rows), BoxTightnessLoss((-20, 0, 20))
    optimizer = torch.optim.AdamW(net.decoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        found = torch.sigmoid(net(image))
        loss = loss_of(found, boxes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    inside = torch.zeros_like(found, dtype=torch.bool)
    for number, _, x1, y1, x2, y2 in rows:
        inside[number, 0, y1 : y2 + 1, x1 : x2 + 1] = True
    assert found[inside].mean() > found[~inside].mean() + 0.3
