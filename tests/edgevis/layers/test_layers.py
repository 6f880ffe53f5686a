"""Layers against reference values; see tests/golden/README.md for where these come from."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edgevis import models
from edgevis.layers import ChannelAttention, EfficientNetB0, PositionAttention
from edgevis.layers.efficientnet import EfficientNetTrunk
from edgevis.layers.mbconv import SameConv2d
from edgevis.models.epri_net import EPRINet
from runtime.errors import ModelError

from locations import GOLDEN_FOLDER
from shared_data import shared_data

GOLDEN = GOLDEN_FOLDER
ATTENTION: dict[str, Callable[[int], nn.Module]] = {
    "abd_pam": lambda channels: PositionAttention(channels, "abd"),
    "abd_cam": lambda channels: ChannelAttention(),
    "fpb_pam_eval": lambda channels: PositionAttention(channels, "fpb"),
    "epri_literal_pam_eval": lambda channels: PositionAttention(channels, "paper"),
}


@pytest.mark.parametrize("case", ["c32", "c80"])
@pytest.mark.parametrize("key", ["abd_pam", "abd_cam", "fpb_pam_eval", "epri_literal_pam_eval"])
def test_attention_of_positions_and_channels(case: str, key: str) -> None:
    golden = np.load(GOLDEN / "pam.npz")
    assert {name.split("/")[1] for name in golden if name.count("/") > 1} == set(ATTENTION)
    prefix = f"{case}/{key}/w/"
    # FPB's code keeps its attention one module deeper.
    weights = {
        name.removeprefix(prefix).removeprefix("pam."): torch.from_numpy(golden[name])
        for name in golden
        if name.startswith(prefix)
    }
    x = torch.from_numpy(golden[f"{case}/x"]).double().requires_grad_()
    module = ATTENTION[key](x.shape[1]).double().eval()
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    out = module(x)
    torch.sum(out * torch.from_numpy(golden[f"{case}/upstream"])).backward()
    assert x.grad is not None
    # The reference was computed in float64 and stored in float32: a relative 1e-6 of values around 1.
    for found, name in ((out.detach(), "out"), (x.grad, "grad_x")):
        expected = golden[f"{case}/{key}/{name}"]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))


def test_position_attention_starts_as_identity() -> None:
    x = torch.rand(2, 16, 4, 3)
    for make in ATTENTION.values():
        assert torch.equal(make(16)(x), x)
    with pytest.raises(ModelError, match="variant 'cam'; allowed: paper, abd, fpb"):
        PositionAttention(16, "cam")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="of 7 channels; allowed: 8 or more"):
        PositionAttention(7, "abd")


@pytest.mark.parametrize("key", ["paper", "abd"])
def test_position_attention_counts(key: str) -> None:
    formula = json.loads((GOLDEN / "param_counts.json").read_text())[f"pam_{'literal' if key == 'paper' else key}_C"]
    for channels in (80, 112):
        expected = eval(formula, {"C": channels})  # noqa: S307 - our own file
        assert models.parameters(PositionAttention(channels, key)) == expected  # type: ignore[arg-type]


def test_fpb_attention_drops_in_training_only() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 16, 4, 3)
    module = PositionAttention(16, "fpb")
    torch.nn.init.ones_(module.gamma)
    added = module(x) - x
    # The second dropout clears a fifth of what is added; the first one makes the rest differ from pass to pass.
    assert float((added.abs() < 1e-6).float().mean()) == pytest.approx(0.2, abs=0.06)
    again = module(x) - x
    kept = (again.abs() > 1e-6) & (added.abs() > 1e-6)
    assert not torch.allclose(again[kept], added[kept], atol=1e-3)
    module.eval()
    assert torch.equal(module(x), module(x))


def test_efficientnet_b0_has_the_published_size() -> None:
    assert models.parameters(EfficientNetB0()) == 5_288_548
    assert models.parameters(EfficientNetB0(num_classes=0)) == 4_007_548


def test_efficientnet_b0_bears_timm_names() -> None:
    """A name and shape from each kind of layer of timm's efficientnet_b0."""
    state = EfficientNetB0().state_dict()
    expected = {
        "conv_stem.weight": (32, 3, 3, 3),
        "bn1.running_var": (32,),
        "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
        "blocks.0.0.se.conv_reduce.weight": (8, 32, 1, 1),
        "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
        "blocks.0.0.bn2.weight": (16,),
        "blocks.2.0.conv_dw.weight": (144, 1, 5, 5),
        "blocks.5.3.se.conv_expand.bias": (1152,),
        "blocks.6.0.conv_pwl.weight": (320, 1152, 1, 1),
        "blocks.6.0.bn3.bias": (320,),
        "conv_head.weight": (1280, 320, 1, 1),
        "bn2.weight": (1280,),
        "classifier.weight": (1000, 1280),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert len([name for name in state if not name.endswith("num_batches_tracked")]) == 311


def test_efficientnet_lite0_has_the_published_size_and_names() -> None:
    lite = EfficientNetB0(lite=True, tensorflow=True)
    assert models.parameters(lite) == 4_652_008
    assert not [name for name in lite.state_dict() if ".se." in name]
    assert {norm.eps for norm in lite.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {1e-3}


def test_efficientnet_lite0_gives_the_published_outputs() -> None:
    """The whole classifier; the trunk takes the same weights without the head's."""
    path = shared_data("weights", "efficientnet_lite0_in1k.safetensors")
    lite = EfficientNetB0(lite=True, tensorflow=True).eval()
    models.load_weights(lite, path)
    with np.load(shared_data("weights", "golden_efficientnet_lite0.npz")) as golden, torch.no_grad():
        image = torch.from_numpy(golden["input"])
        pooled = lite.head(lite.blocks(lite.stem(image))).mean((2, 3))
        np.testing.assert_allclose(pooled, golden["embedding"], atol=1e-4)
        np.testing.assert_allclose(lite(image), golden["logits"], atol=1e-3)
        trunk = EfficientNetTrunk(lite=True, tensorflow=True).eval()
        head = ("conv_head.", "bn2.", "classifier.")
        weights = {name: x for name, x in models.read_weights(path).items() if not name.startswith(head)}
        trunk.load_state_dict(weights)
        assert torch.equal(trunk.pyramid(image)[-1], lite.blocks(lite.stem(image)))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2)])
def test_same_convolution_keeps_tensorflows_rule(kernel: int, stride: int) -> None:
    """Output side ceil(side / stride); of an odd padding the larger half is at the end."""
    module = SameConv2d(1, 1, kernel, stride=stride)
    torch.nn.init.ones_(module.weight)
    found = module(torch.ones(1, 1, 8, 8))[0, 0]
    total = max((8 // stride - 1) * stride + kernel - 8, 0)
    padded = torch.nn.functional.pad(torch.ones(8, 8), (total // 2, total - total // 2) * 2)
    expected = padded.unfold(0, kernel, stride).unfold(1, kernel, stride).sum((2, 3))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "total"), [("baseline", "baseline"), ("fpb", "FPB"), ("pfpb", "PFPB"), ("pam", "PAM"), ("", "EPRI")]
)
def test_epri_net_table_2(name: str, total: str) -> None:
    golden = json.loads((GOLDEN / "epri_params.json").read_text())
    entry = models.entry("epri-net" + (f"-{name}" if name else ""))
    assert entry.parameters == golden["option_A"][total]
    assert round(entry.parameters / 1e6, 2) == golden["target"][total]


def test_epri_net_shapes() -> None:
    golden = json.loads((GOLDEN / "epri_params.json").read_text())
    model = models.create("epri-net")
    assert isinstance(model, EPRINet)
    shapes = [list(p.shape) for name, p in model.named_parameters() if not name.startswith("backbone.")]
    assert sorted(shapes) == sorted(golden["param_shapes_A_without_backbone"].values())
    image = torch.rand(2, 3, 384, 192)
    with torch.inference_mode():
        levels = model.levels(image)
        assert model.pixels is not None
        pyramid = model.pixels(*levels)
        branches = model.branches(image)
        embedding = model.embed(image)
        logits = model.logits(branches)
    shapes_of = golden["map_shapes_NCHW"]
    assert [list(x.shape) for x in levels] == [shapes_of["1280"], shapes_of["320"], shapes_of["192"]]
    assert list(pyramid.shape) == golden["pyramid_out"]
    assert list(embedding.shape) == golden["feature"]
    assert torch.equal(embedding, torch.cat(branches, 1))
    assert [tuple(x.shape) for x in logits] == [(2, 751), (2, 751)]


def test_epri_net_fpb_shapes() -> None:
    golden = json.loads((GOLDEN / "epri_params.json").read_text())
    model = models.create("epri-net-fpb")
    shapes = [list(p.shape) for name, p in model.named_parameters() if not name.startswith("backbone.")]
    assert sorted(shapes) == sorted(golden["fpb_row_shapes"].values())


@pytest.mark.parametrize("height", [128, 160, 768])
@pytest.mark.parametrize("name", ["epri-net", "epri-net-fpb"])
def test_epri_net_of_other_heights(name: str, height: int) -> None:
    entry = models.entry(name)
    model = models.create(name, height=height)
    deployment = models.deployment_of(entry, model)
    assert models.parameters(model) == entry.parameters
    assert deployment.graphs[0].inputs[0].shape == ("N", 3, height, height // 2)
    assert (deployment.preprocess.height, deployment.preprocess.width) == (height, height // 2)
    with torch.inference_mode():
        embedding = model.embed(torch.rand(1, 3, height, height // 2))  # type: ignore[operator]
    assert ("N", *embedding.shape[1:]) == deployment.graphs[0].outputs[0].shape


@pytest.mark.parametrize("height", [96, 144, 800, "high"])
def test_epri_net_refuses_other_heights(height: int | str) -> None:
    with pytest.raises(ModelError, match=f"height is {height!r}; allowed: multiples of 32 from 128 to 768"):
        models.create("epri-net-pam", height=height)


def test_epri_net_trains_through_every_parameter() -> None:
    """The two logits and the embedding together reach all that may learn; the BNNecks' shifts stay frozen at 0."""
    torch.manual_seed(0)
    model = models.create("epri-net", num_identities=5).train()
    assert isinstance(model, EPRINet)
    branches = model.branches(torch.rand(2, 3, 64, 32))
    sum(x.square().sum() for x in (*model.logits(branches), *branches)).backward()  # type: ignore[union-attr]
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"neck.bias", "neck_pyramid.bias"}
    assert not model.neck.bias.any()
    with pytest.raises(ModelError, match="num_identities is -1"):
        models.create("epri-net", num_identities=-1)
