"""RegNet, GhostNet and EfficientNet-b0 against timm's outputs: names, counts, widths, embeddings, logits; their users.
MobileNetV2 at other sides.

The reference's weights follow from the parameters' names, so equal outputs mean equal names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgevis import models
from edgevis.layers.efficientnet import EfficientNetB0
from edgevis.layers.ghostnet import GhostNetTrunk
from edgevis.layers.regnet import DESIGNS, RegNet
from edgevis.models.mobilenetv2 import MobileNetV2
from runtime.common.arrays import Array
from runtime.errors import InputError, ModelError

from locations import GOLDEN_FOLDER
from recipe_weights import load_recipe_weights

pytestmark = pytest.mark.torch

OTHERS = {"ghostnet_100": "ghostnet", "efficientnet_b0": "efficientnet-b0"}
"""Models by timm's names."""


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Array]]:
    with np.load(GOLDEN_FOLDER / "regnet.npz") as file:
        yield dict(file)


def assert_near(actual: torch.Tensor, expected: Array) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", [*DESIGNS, *OTHERS])
def test_the_published_network(name: str, golden: dict[str, Array]) -> None:
    network: Any = models.create(OTHERS[name]) if name in OTHERS else models.create("regnet", variant=name)
    load_recipe_weights(network, seed=int(golden["seed"]), gain=float(golden[f"{name}/gain"]))
    assert models.parameters(network) == golden[f"{name}/params"]
    image = torch.from_numpy(golden["image"].astype(np.float32))
    with torch.no_grad():
        assert_near(network.encode(image), golden[f"{name}/pooled"])
        assert_near(network(image)[:, :32], golden[f"{name}/logits_first32"])
        if isinstance(network, RegNet):
            assert [*network.channels, *network.depths] == list(golden[f"{name}/widths_depths_group_stem"][:8])
            if f"{name}/features" in golden:
                assert_near(network.maps(image)[-1], golden[f"{name}/features"])


def test_a_last_stride_of_one_doubles_the_last_map() -> None:
    network = RegNet("regnetx_002", last_stride=1).eval()
    with torch.no_grad():
        maps = network.maps(torch.rand(1, 3, 64, 32))
    assert [tuple(x.shape[2:]) for x in maps] == [(16, 8), (8, 4), (4, 2), (4, 2)]
    assert models.parameters(network) == models.parameters(RegNet("regnetx_002"))


@pytest.mark.parametrize(("backbone", "channels"), [("ghostnet", (40, 112, 160)), ("regnety_004", (104, 208, 440))])
def test_a_detector_on_it(backbone: str, channels: tuple[int, ...]) -> None:
    model = models.create("efficientdet-d0", backbone=backbone, size=128, num_classes=2, labels="cup, person")
    deployment = models.deployment_of(models.entry("efficientdet-d0"), model)
    assert deployment.preprocess.mean == (0.485, 0.456, 0.406)
    maps = model.backbone.pyramid(torch.rand(1, 3, 128, 128))  # type: ignore[operator, union-attr]
    assert [tuple(x.shape[1:]) for x in maps] == [
        (count, side, side) for count, side in zip(channels, (16, 8, 4), strict=True)
    ]
    with torch.no_grad():
        scores, boxes = model.detect(torch.rand(2, 3, 128, 128))  # type: ignore[operator]
    assert (scores.shape, boxes.shape) == ((2, 3069, 2), (2, 3069, 4))


def test_epri_net_on_it() -> None:
    """The encoder's weights begin EPRI-Net's backbone, whose maps are the same up to the stage of another stride."""
    encoder = models.create("efficientnet-b0", num_classes=0, side=64)
    assert isinstance(encoder, EfficientNetB0)
    backbone = models.create("epri-net-baseline", height=128, num_identities=0).backbone
    assert isinstance(backbone, EfficientNetB0)
    backbone.load_state_dict(encoder.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder.pyramid(image)[1], backbone.pyramid(image)[1])
        assert backbone.pyramid(image)[2].shape == (1, 320, 4, 4)
    deployment = models.deployment_of(models.entry("efficientnet-b0"), encoder)
    assert deployment.preprocess.height == 64
    assert deployment.graphs[0].outputs[0].shape == ("N", 1280)


def test_few_shot_segmentation_on_it() -> None:
    """Odd sides, and maps with both signs, which hybrid masking tells apart."""
    model = models.create("hsnet-hm", backbone="regnetx_004", side=97)
    backbone = model.backbone
    assert isinstance(backbone, RegNet)
    assert not backbone.training
    with torch.no_grad():
        two, three, four = backbone.features(torch.rand(2, 3, 97, 97))
    assert [tuple(maps[-1].shape) for maps in (two, three, four)] == [
        (2, 64, 13, 13), (2, 160, 7, 7), (2, 384, 4, 4),
    ]  # fmt: skip
    assert (len(two), len(three), len(four)) == backbone.depths[1:]
    assert all(float(maps[-1].min()) < 0 for maps in (two, three, four))
    spec = models.deployment_of(models.entry("hsnet-hm"), model)
    assert spec.graph("support").outputs[0].shape == ("N", 12, 384, 16)
    with pytest.raises(InputError, match="allowed: "):
        backbone.features(torch.rand(3, 97, 97))


def test_variants_and_their_deployments() -> None:
    model = models.create("regnet", variant="regnetx_002", num_classes=0, side=64)
    deployment = models.deployment_of(models.entry("regnet"), model)
    assert deployment.graphs[0].outputs[0].shape == ("N", 368)
    assert deployment.preprocess.height == 64
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    with pytest.raises(ModelError, match="variant is 'regnetx_400'; allowed: regnetx_002, "):
        models.create("regnet", variant="regnetx_400")


def test_mobilenetv2_at_another_side() -> None:
    """No parameter depends on the side: the same weights load strictly."""
    declared, small = models.entry("mobilenetv2"), MobileNetV2(side=64)
    small.load_state_dict(models.create("mobilenetv2").state_dict())
    deployment = models.deployment_of(declared, small)
    assert deployment.graphs[0].inputs[0].shape == ("N", 3, 64, 64)
    assert deployment.preprocess == replace(declared.deployment.preprocess, height=64, width=64)
    with torch.no_grad():
        assert small.encode(torch.rand(1, 3, 64, 64)).shape == (1, 1280)
    with pytest.raises(ModelError, match="side is 100; allowed: multiples of 32 from 64 to 640"):
        models.create("mobilenetv2", side=100)


@pytest.mark.parametrize(
    ("part", "whole"),
    [(GhostNetTrunk, "ghostnet"), (MobileNetV2, "dy-mobilenetv2")],
    ids=["ghostnet", "dy-mobilenetv2"],
)
def test_what_a_network_begins_with_is_drawn_once(part: type[nn.Module], whole: str) -> None:
    """Parameters that it shares with the network that it builds on are what that one drew from the same seed."""
    torch.manual_seed(0)
    first = part().state_dict()
    torch.manual_seed(0)
    second = models.create(whole).state_dict()
    shared = [name for name in first if name in second and first[name].shape == second[name].shape]
    assert "conv_stem.weight" in shared
    assert all(torch.equal(first[name], second[name]) for name in shared)
