"""PointRend on a small pyramid: counts, what refining changes, options, published weights, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from edgevis import models
from edgevis.layers.fpn import doubled
from edgevis.layers.point_rend import uncertainty
from edgevis.losses import point_rend_loss
from edgevis.models._point_rend import POINT_REND_FLIPS, PointRefinedModel
from edgevis.models.pointrend import PointRend
from edgevis.train import main
from edgevis.training.warm_start import load_backbone, load_matching
from runtime.errors import ModelError

from training_data import write_masks

pytestmark = pytest.mark.torch

SIDE, POINTS = 64, 100
SMALL = {"backbone": "regnetx_002", "side": SIDE, "points": POINTS}


def pointrend(**options: int | str) -> PointRend:
    torch.manual_seed(0)
    model = models.create("pointrend", **{**SMALL, **options})
    assert isinstance(model, PointRend)
    return model


def test_counts() -> None:
    """Of two classes; the pyramid 672,768, the coarse head 406,530, the point head 50,050."""
    whole = models.create("pointrend", classes=2)
    assert isinstance(whole, PointRend)
    parts = (whole.backbone, whole.fpn, whole.coarse_sem_seg_head, whole.point_head)
    assert [models.parameters(part) for part in parts] == [4_772_512, 672_768, 406_530, 50_050]
    assert models.parameters(whole) == 5_901_860


@pytest.mark.parametrize("backbone", ["regnetx_002", "mobilenetv2"])
def test_signals_of_an_untrained_network_are_of_order_one(backbone: str) -> None:
    model = pointrend(backbone=backbone, classes=3)
    with torch.no_grad():
        coarse, fine = model.coarse_and_fine(torch.randn(2, 3, SIDE, SIDE))
    assert coarse.shape == (2, 3, SIDE // 4, SIDE // 4)
    assert fine.shape == (2, 128, SIDE // 4, SIDE // 4)
    assert 0.1 < coarse.std() < 10
    assert 0.1 < fine.std() < 30


def test_points_refine_what_plain_enlargement_gives(tmp_path: Path) -> None:
    model, plain = pointrend(), pointrend(points=0)
    save_file(model.state_dict(), str(tmp_path / "refining.safetensors"))
    models.load_weights(plain, tmp_path / "refining.safetensors")
    image = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        refined, enlarged = model.segment(image), plain.segment(image)
        coarse, _ = model.coarse_and_fine(image)
        torch.testing.assert_close(
            enlarged, functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear"), atol=1e-5, rtol=0
        )
        logits, points = model.training_outputs(image)
        torch.testing.assert_close(logits, enlarged, atol=1e-5, rtol=0)
    # A point of the first doubling moves 16 pixels of the second one.
    doubled_twice = doubled(doubled(coarse))
    changed = refined != doubled_twice
    assert changed.flatten(1).sum(1).min() >= POINTS
    assert changed.flatten(1).sum(1).max() <= 17 * POINTS
    assert uncertainty(doubled_twice)[changed].mean() > uncertainty(doubled_twice).mean()
    assert points is not None
    assert points.logits.shape == (2, 1, POINTS)
    assert plain.training_outputs(image)[1] is None


def test_options() -> None:
    model = pointrend(classes=4, side=96, backbone="mobilenetv2")
    deployment = models.deployment_of(models.entry("pointrend"), model)
    (graph,) = deployment.graphs
    assert graph.outputs[0].shape == ("N", 4, 96, 96)
    assert graph.max_flipped == 1e-3
    assert graph.float32_outputs == ("logits",)
    assert deployment.preprocess.mean == (0.5,) * 3
    assert models.deployment_of(models.entry("pointrend"), pointrend(points=0)).graphs[0].max_flipped == 0
    with torch.no_grad():
        assert model.segment(torch.randn(1, 3, 96, 96)).shape == (1, 4, 96, 96)
    for options, message in (
        ({"points": 4000}, "points is 4000; allowed: a whole number from 0 to 3840"),
        ({"points": 1025}, "points is 1025 and side 64; allowed: at most 1024 points"),
        ({"side": 48}, "side is 48; allowed: multiples of 32"),
        ({"side": 8192}, "sides up to 4096"),
        ({"backbone": "resnet50"}, "backbone is 'resnet50'; allowed: mobilenetv2, regnetx_002"),
    ):
        with pytest.raises(ModelError, match=message):
            models.create("pointrend", **{**SMALL, **options})


def test_published_weights_begin_its_backbone(tmp_path: Path) -> None:
    published = models.create("mobilenetv2")
    save_file(published.state_dict(), str(tmp_path / "mobilenetv2.safetensors"))
    model = pointrend(backbone="mobilenetv2")
    load_backbone(model, tmp_path / "mobilenetv2.safetensors")
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        x = published.blocks(published.act1(published.bn1(published.conv_stem(image))))  # type: ignore[operator]
        torch.testing.assert_close(model.backbone.maps(image)[-1], x)


def test_learns_borders_at_points() -> None:
    """Discs: the loss at points falls, and every parameter but those of batch norms' biases has a gradient."""
    model = pointrend().train()
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    masks = torch.stack([((rows - y) ** 2 + (columns - x) ** 2 < r**2) for y, x, r in ((30, 26, 15), (34, 40, 20))])
    image = masks[:, None].float().expand(-1, 3, -1, -1) * 2 - 1 + 0.1 * torch.randn(2, 3, SIDE, SIDE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        logits, points = model.training_outputs(image)
        assert points is not None
        at_points = point_rend_loss(*points, masks)
        (functional.binary_cross_entropy_with_logits(logits[:, 0], masks.float()) + at_points).backward()
        optimizer.step()
        losses.append(at_points.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < 0.6 * losses[0]


def test_trains_from_masks_and_says_that_boxes_do_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_masks(tmp_path / "data")
    options = [f"--option={name}={value}" for name, value in SMALL.items()]
    common = ["pointrend", "--data", str(data), "--recipe", "small", "--quiet", *options]
    settings = ["--set=epochs=1", "--set=steps_per_epoch=2", "--set=batch=2"]
    assert main([*common, *settings, "--output", str(tmp_path / "run")]) == 0
    figures = json.loads((tmp_path / "run" / "report.json").read_text())["evaluation"]["figures"]
    assert set(figures) == {"Dice", "IoU", "boundary IoU"}
    samples = json.loads((tmp_path / "run" / "samples.json").read_text())
    dice = np.array(samples["Dice"])
    np.testing.assert_allclose(samples["IoU"], dice / (2 - dice))
    log = (tmp_path / "run" / "log.csv").read_text()
    assert "masks" in log
    assert "points" in log
    assert main([*common, "--set=supervision=boxes", "--output", str(tmp_path / "boxes")]) != 0
    assert "PointRend learns from masks (--set supervision=masks)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["enet", "residual-unet"])
def test_other_networks_refine_half_the_sides(name: str) -> None:
    """ENet and the residual U-Net with points: 40 pixels of each image at its full size."""
    torch.manual_seed(0)
    model = models.create(name, side=32, points=40, classes=2)
    assert isinstance(model, PointRefinedModel)
    deployment = models.deployment_of(models.entry(name), model)
    (graph,) = deployment.graphs
    assert graph.max_flipped >= POINT_REND_FLIPS
    assert graph.float32_outputs == ("logits",)
    image = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        coarse, fine = model.coarse_and_fine(image)
        refined = model.segment(image)
    assert coarse.shape[2:] == fine.shape[2:] == (16, 16)
    changed = (refined != doubled(coarse)).any(1).flatten(1).sum(1)
    assert changed.tolist() == [40, 40]


def test_weights_without_points_begin_an_enet_with_points(tmp_path: Path) -> None:
    """Those that ship: the point head alone begins anew."""
    shipped = models.shipped_weights("enet", {"in_channels": 3})
    assert shipped is not None
    model = models.create("enet", in_channels=3, points=40)
    head = model.get_parameter("point_head.fc1.weight").clone()
    assert "begun anew: point_head.fc1.bias" in load_matching(model, shipped, entry=models.entry("enet"))
    plain = models.create("enet", in_channels=3)
    models.load_weights(plain, shipped)
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in plain.state_dict().items())
    assert torch.equal(head, own["point_head.fc1.weight"])
