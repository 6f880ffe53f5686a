"""AFL-Net on mobile backbones: counts, wiring, what published weights make of it, what it exports, freezing."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from onnx.inliner import inline_local_functions
from safetensors.torch import load_file, save_file
from torch import nn

from edgevis import models
from edgevis.layers import CrossAttention
from edgevis.losses import AttentionFusionLoss
from edgevis.models.afl_net import DEPLOYMENT, MobileAFLNet, MobileStem
from edgevis.models.efficientnet_lite0 import EfficientNetLite0
from edgevis.models.mobilenetv2 import MobileNetV2
from edgevis.train import main
from edgevis.training.freeze import freeze, train_but_frozen
from edgevis.training.warm_start import load_backbone
from export.onnx import onnx_from_module
from runtime.errors import InputError, ModelError, WeightsError
from runtime.images.preprocess import Preprocessor

from shared_data import shared_data
from training_data import write_classes

pytestmark = pytest.mark.torch

PUBLISHED = ("weights", "mobilenetv2_100.tf2_ptq_in1k.safetensors")
# MobileNetV2's parts, each convolution with its batch norm: 3x3 over 3 and a depthwise block to 16; then per block of
# expansion 6: expanding 1x1, depthwise 3x3, 1x1 back, weights and shifts of three norms.
BLOCKS = {24: (16, 24), 32: (24, 32, 32), 64: (32, 64, 64, 64), 96: (64, 96, 96), 160: (96, 160, 160), 320: (160,)}


BACKBONES = {"mobilenetv2": (64, 96), "efficientnet-lite0": (80, 112)}
"""Channels of the stem, and of the maps that are joined."""


def small_net(name: str = "afl-net", *, backbone: str = "mobilenetv2") -> MobileAFLNet:
    torch.manual_seed(0)
    model = models.create(name, backbone=backbone, num_classes=6)
    assert isinstance(model, MobileAFLNet)
    return model


def stage(outputs: int) -> int:
    return sum(
        6 * inputs * inputs + 9 * 6 * inputs + 6 * inputs * outputs + 2 * (12 * inputs + outputs)
        for inputs in BLOCKS[outputs]
    )


def test_counts() -> None:
    stem = 27 * 32 + 2 * 32 + (9 * 32 + 2 * 32 + 32 * 16 + 2 * 16) + sum(map(stage, (24, 32, 64)))
    branch = sum(map(stage, (96, 160, 320))) + 320 * 1280 + 2 * 1280
    gates = 2 * 2 * 96 * 6 + 2 * 2 * 1280 * 80
    without = stem + 2 * branch + 2 * 192 * 96 + 64 * 1280 + 64
    plain, whole = (models.create(name, backbone="mobilenetv2") for name in ("afl-net-no-attention", "afl-net"))
    assert models.parameters(plain) == without == 4_327_232
    assert models.parameters(whole) == without + gates == 4_739_136
    assert isinstance(whole, MobileAFLNet)
    # One stem and one branch are MobileNetV2 without its classifier.
    classifier = 1280 * 1000 + 1000
    assert sum(map(models.parameters, whole.backbones[:2])) == models.entry("mobilenetv2").parameters - classifier


@pytest.mark.parametrize("backbone", BACKBONES)
def test_options(backbone: str) -> None:
    entry = models.entry("afl-net")
    mobile = models.deployment_of(entry, small_net(backbone=backbone))
    assert mobile.preprocess == models.entry(backbone).deployment.preprocess
    assert mobile.graphs[0].inputs[0].shape == ("N", 3, 224, 224)
    assert mobile.graphs[0].outputs[0].shape == ("N", 2560)
    assert models.deployment_of(entry, models.create("afl-net", backbone="resnet12")) == DEPLOYMENT
    with pytest.raises(ModelError, match="backbone is 'resnet50'; allowed: resnet12, mobilenetv2, efficientnet-lite0"):
        models.create("afl-net", backbone="resnet50")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", ["afl-net", "afl-net-no-attention"])
def test_it_is_wired_as_its_docstring_says(name: str, backbone: str) -> None:
    """One stem; gates after the branches' first stage and after the head; both joins take both maps."""
    model = small_net(name, backbone=backbone)
    channels, joins = BACKBONES[backbone]
    for part in model.modules():
        if isinstance(part, CrossAttention):
            nn.init.normal_(part.expand.weight)
    for join in (model.global_join, model.local_join):
        nn.init.normal_(join.weight, std=0.1)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    branches = (model.global_branch, model.local_branch)
    with torch.inference_mode():
        x = model.stem(image)
        g, s = (branch.first(x) for branch in branches)
        assert (x.shape[1:], g.shape[1:]) == ((channels, 4, 4), (joins, 4, 4))
        if model.gates3 is not None:
            g, s = model.gates3.to_global(g, s), model.gates3.to_local(s, g)
        joined = torch.cat((g, s), 1)
        g, s = (
            branch.rest(join(joined))
            for branch, join in zip(branches, (model.global_join, model.local_join), strict=True)
        )
        assert g.shape[1:] == (1280, 2, 2)
        if model.gates4 is not None:
            g, s = model.gates4.to_global(g, s), model.gates4.to_local(s, g)
        found = model(image)
        torch.testing.assert_close(found.global_embedding, g.mean((2, 3)))
        torch.testing.assert_close(found.local_embedding, s.mean((2, 3)))
        assert torch.equal(found.embedding, torch.cat(found[:2], 1))
        assert torch.equal(found.embedding, model.encode(image))
        assert torch.equal(found.global_logits, model.classifier(found.global_embedding))
    assert (model.gates3 is None) == (model.gates4 is None) == (name != "afl-net")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_its_stem_and_branches_are_its_backbones(backbone: str) -> None:
    model = small_net(backbone=backbone)
    found = [name for name in model.stem.state_dict() if "running" not in name]
    whole = models.create(backbone)
    published = [name for name in whole.state_dict() if "running" not in name]
    assert found == published[: len(found)]
    rest = [name for name in model.local_branch.state_dict() if "running" not in name]
    assert found + rest == [name for name in published if not name.startswith("classifier")]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", ["afl-net", "afl-net-no-attention"])
def test_it_begins_as_its_backbone(name: str, backbone: str, tmp_path: Path) -> None:
    """Whatever the backbone's weights are, both halves of the embedding have its direction."""
    torch.manual_seed(1)
    whole = models.create(backbone)
    assert isinstance(whole, (MobileNetV2, EfficientNetLite0))
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    model = small_net(name, backbone=backbone)
    load_backbone(model, tmp_path / "whole.safetensors")
    image = torch.rand(3, 3, 96, 96) * 2 - 1
    with torch.inference_mode():
        expected, found = whole.encode(image), model(image)
    factor = 0.5 if name == "afl-net" else 1.0
    for half in (found.global_embedding, found.local_embedding):
        torch.testing.assert_close(half, factor * expected, rtol=1e-4, atol=1e-6)


def test_published_weights_begin_as_mobilenetv2() -> None:
    path = shared_data(*PUBLISHED)
    model, whole = small_net(), models.create("mobilenetv2")
    assert isinstance(whole, MobileNetV2)
    load_backbone(model, path)
    models.load_weights(whole, path)
    names = ("bird.png", "cat_720p.jpg", "dog_test_0.png", "sunflower.png")
    images = [cv2.imread(str(shared_data("sample_images", name))) for name in names]
    preprocess = Preprocessor(models.entry("mobilenetv2").deployment.preprocess)
    image = torch.from_numpy(preprocess([picture for picture in images if picture is not None]))
    with torch.inference_mode():
        expected, found = whole.encode(image), model(image)
    for half in (found.global_embedding, found.local_embedding):
        assert torch.cosine_similarity(half, expected).min() > 0.99999


def test_weights_that_lack_something_are_refused(tmp_path: Path) -> None:
    state = models.create("mobilenetv2").state_dict()
    for missing in ("blocks.1.0.bn1.weight", "blocks.6.0.conv_pw.weight"):
        save_file({name: tensor for name, tensor in state.items() if name != missing}, tmp_path / "less.safetensors")
        with pytest.raises(WeightsError, match=f"1 missing: {missing}"):
            load_backbone(small_net(), tmp_path / "less.safetensors")
    with pytest.raises(InputError, match="has no backbone"):
        load_backbone(models.create("afl-net"), tmp_path / "less.safetensors")


def test_engines_compute_what_pytorch_does() -> None:
    model = small_net()
    for part in model.modules():
        if isinstance(part, CrossAttention):
            nn.init.normal_(part.expand.weight)
    (graph,) = models.deployment_of(models.entry("afl-net"), model).graphs
    exported = onnx_from_module(model, graph)
    assert [node.op_type for node in exported.graph.node if node.domain == "edgevis"] == ["CrossAttention"] * 4
    image = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.inference_mode():
        expected = model.encode(image).numpy()
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    core = openvino.Core()
    inlined = core.read_model(inline_local_functions(exported).SerializeToString())
    compiled = core.compile_model(inlined, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for found in (session.run(None, {"image": image.numpy()})[0], compiled([image.numpy()])[0]):
        # Float32 in other orders of summation, batch norms folded.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))


# --- freezing


def test_what_is_frozen_stays() -> None:
    """No gradient, no graph, no statistics; all else learns, gates and joins too."""
    model = small_net()
    assert freeze(model, ("stem", "local_branch.blocks.4")) == models.parameters(model.stem) + stage(96)
    train_but_frozen(model)
    assert isinstance(model.stem, MobileStem)
    assert not model.stem.bn1.training
    assert model.local_branch.bn2.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    criterion = AttentionFusionLoss()
    parameters = [item for item in (*model.parameters(), *criterion.parameters()) if item.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)
    images = torch.rand(6, 3, 64, 64) * 2 - 1
    assert not model.stem(images).requires_grad
    for _ in range(2):
        found = model(images)
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        loss = criterion(found.global_logits, found.local_embedding, found.embedding, labels, way=3, shot=1, query=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if not name.startswith(("stem.", "local_branch.blocks.4."))}


def test_prefixes_that_freeze_nothing_or_all() -> None:
    model = models.create("mobilenetv2")
    message = r"frozen has 'block', which no parameter of a MobileNetV2 has before it; its prefixes: conv_stem, bn1, "
    with pytest.raises(InputError, match=message + r"blocks\.0, blocks\.1, "):
        freeze(model, ("conv_stem", "block"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(InputError, match="leaves nothing to train"):
        freeze(model, ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "classifier"))


@pytest.mark.parametrize(
    ("model", "loss", "frozen"),
    [
        ("afl-net", "fusion", "stem"),
        ("afl-net", "local", "stem"),
        ("mobilenetv2", "global", "conv_stem bn1 blocks.0 blocks.1 blocks.2 blocks.3"),
        ("mobilenetv2", "local", "conv_stem bn1 blocks.0 blocks.1 blocks.2 blocks.3"),
    ],
)
def test_every_objective_leaves_it(
    model: str, loss: str, frozen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over two epochs, between which a validation runs the model in evaluation mode."""
    option = {"backbone": "mobilenetv2"} if model == "afl-net" else {}
    torch.manual_seed(3)
    begun = models.create(model, **option).state_dict()
    save_file(begun, tmp_path / "begun.safetensors")
    settings = {
        "loss": loss, "frozen": json.dumps(frozen.split()), "epochs": 2, "steps_per_epoch": 1, "way": 2,
        "query": 1, "episodes_per_step": 1, "held_out": 0.3, "test_way": 2, "test_query": 2, "test_episodes": 2,
        "warm_up_epochs": 0,
    }  # fmt: skip
    data = write_classes(tmp_path / "data", images=7)
    arguments = [model, "--recipe", "small", "--data", data, "--output", tmp_path / "run"]
    arguments += ["--weights", tmp_path / "begun.safetensors"]
    arguments += [part for name, value in option.items() for part in ("--option", f"{name}={value}")]
    arguments += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    assert main([str(argument) for argument in arguments]) == 0
    assert "frozen; source data" in capsys.readouterr().out
    found = load_file(tmp_path / "run" / "last.safetensors")
    prefixes = tuple(f"{prefix}." for prefix in frozen.split())
    kept = [name for name in begun if name.startswith(prefixes)]
    weights = {name.removeprefix("model/"): tensor for name, tensor in found.items()}
    assert kept
    assert all(torch.equal(weights[name], begun[name]) for name in kept)
    head = "global_branch.bn2.running_mean" if model == "afl-net" else "bn2.running_mean"
    assert not torch.equal(weights[head], begun[head])
