"""FEAT: parameters, names and values of the reference, DropBlock, and where training with published weights begins."""

from __future__ import annotations

import csv
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from edgevis import models
from edgevis.layers.drop_block import DropBlock, kept_of, seed_rate
from edgevis.losses import cosine_logits, prototypes, squared_distance_logits
from edgevis.models.feat import FEAT, Backbone, WideResNet12
from runtime.common.arrays import Array
from runtime.errors import ModelError

from locations import GOLDEN_FOLDER
from recipe_weights import load_recipe_weights

GOLDEN = GOLDEN_FOLDER / "feat_model.npz"
BACKBONES: dict[str, Backbone] = {"ConvNet": "convnet", "Res12": "resnet12"}
CASES = (
    "ConvNet_euclid_4w1s2q",
    "ConvNet_euclid_3w2s1q",
    "ConvNet_cosine_4w1s2q",
    "ConvNet_cosine_3w2s1q",
    "Res12_euclid_3w2s1q",
    "Res12_cosine_4w1s2q",
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Array]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("case", CASES)
def test_reference_values(golden: dict[str, Array], case: str) -> None:
    values = {key.removeprefix(f"{case}/"): array for key, array in golden.items() if key.startswith(f"{case}/")}
    model = cast(FEAT, models.create("feat", backbone=BACKBONES[case.partition("_")[0]]))
    load_recipe_weights(model, seed=int(golden["seed"]), gain=float(values["gain"]))
    expected = values["embedding"]
    images = _images(len(expected), int(values["image_seed"]))
    way, shot = int(case[-6]), int(case[-4])
    with torch.no_grad():
        embedding = model.encode(images)
        mean = prototypes(embedding[: way * shot].reshape(shot, way, -1).transpose(0, 1))
        adapted = model.adapt(mean[None])[0]
        queries, scale = embedding[way * shot :], 1 / float(values["temperature"])
        if "euclid" in case:
            logits = squared_distance_logits(queries, adapted, scale)
        else:
            logits = cosine_logits(queries, adapted, scale, normalise_queries=False)
    for name, found in (("embedding", embedding), ("prototype", mean), ("adapted", adapted), ("logits", logits)):
        bound = (1e-5 if name == "logits" else 1e-4) * np.abs(values[name]).max()
        np.testing.assert_allclose(found.numpy(), values[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize(
    ("backbone", "total", "attention"),
    [
        ("convnet", 129_664, 16_576),
        ("resnet12", 14_064_640, 1_640_320),
        ("mobilenetv2", 2_223_872 + 1280 * 320 + 320 + 410_560, 410_560),
        ("efficientnet-lite0", 3_371_008 + 1984 * 640 + 640 + 1_640_320, 1_640_320),
    ],
)
def test_counts(backbone: Backbone, total: int, attention: int) -> None:
    with torch.device("meta"):
        model = cast(FEAT, models.create("feat", backbone=backbone))
    assert (models.parameters(model), models.parameters(model.slf_attn)) == (total, attention)


@pytest.mark.parametrize("backbone", ["convnet", "resnet12"])
def test_published_names(backbone: Backbone) -> None:
    with torch.device("meta"):
        state = models.create("feat", backbone=backbone).state_dict()
    with (GOLDEN_FOLDER / f"feat_names_{backbone}.csv").open(newline="") as file:
        expected = {row["name"]: row["shape"] for row in csv.DictReader(file)}
    found = {
        name: "x".join(map(str, tensor.shape)) for name, tensor in state.items() if "num_batches_tracked" not in name
    }
    assert found == expected


def test_drop_block_drops_what_the_reference_drops(golden: dict[str, Array]) -> None:
    for name, block in (("10_5", 5), ("5_5", 5), ("8_3", 3)):
        kept, scale = kept_of(torch.from_numpy(golden[f"dropblock_{name}/mask"]).float(), block)
        np.testing.assert_array_equal(kept.numpy(), golden[f"dropblock_{name}/keep"])
        assert float(scale) == pytest.approx(float(golden[f"dropblock_{name}/scale"]), rel=1e-6)
    for calls, side, gamma in golden["dropblock_gamma_calls_side_gamma"].tolist():
        assert seed_rate(int(calls), int(side), 5) == pytest.approx(gamma, rel=1e-5)


def test_a_dropped_block_has_no_holes() -> None:
    """Of 25 seeds, too, where the published code leaves some."""
    seeds = torch.zeros(1, 25, 6, 6)
    seeds[:, :, 2, 3] = 1
    kept, scale = kept_of(seeds, 5)
    assert not kept[:, :, 2:7, 3:8].any()
    assert int(kept.sum()) == 25 * 75
    assert float(scale) == pytest.approx(100 / 75)
    nothing, scale = kept_of(torch.ones(1, 1, 6, 6), 5)
    assert not nothing.any()
    assert float(scale) == 100  # of nothing


def test_drop_block_works_in_training_only_and_ever_more() -> None:
    torch.manual_seed(0)
    layer = DropBlock(5)
    x = torch.ones(8, 32, 10, 10)
    layer.step = 40_000
    dropped = layer(x)
    assert 0.05 < float((dropped == 0).float().mean()) < 0.25
    assert float(dropped.mean()) == pytest.approx(1.0, abs=1e-4)
    assert layer.step == 40_001
    layer.step = 0
    assert float((layer(x) == 0).float().mean()) < 0.001
    layer.eval()
    assert layer(x) is x
    assert layer.step == 1
    layer.train()
    with pytest.raises(ModelError, match=r"DropBlock of 5 on a map of \(4, 4\); allowed: larger"):
        layer(x[..., :4, :4])
    with pytest.raises(ModelError, match="block of 0"):
        DropBlock(0)


def test_a_training_step_sets_what_is_dropped() -> None:
    model = FEAT(backbone="resnet12")
    model.begin_step(20_000, epochs=1.0)
    encoder = model.encoder
    assert isinstance(encoder, WideResNet12)
    assert (encoder.blocks3.step, encoder.blocks4.step) == (20_000, 20_000)
    assert not {name for name in model.state_dict() if "blocks" in name or "elements" in name}


@pytest.mark.parametrize("backbone", ["mobilenetv2", "efficientnet-lite0"])
def test_the_adaptation_of_published_weights_begins_as_none(backbone: Backbone) -> None:
    """A layer norm alone: nothing of the other labels, and the direction less its mean."""
    torch.manual_seed(0)
    model = FEAT(backbone=backbone).eval()
    members = torch.randn(1, 4, model.slf_attn.channels)
    with torch.no_grad():
        adapted = model.adapt(members)
    expected = nn.functional.layer_norm(members, members.shape[-1:])
    torch.testing.assert_close(adapted, expected)


def test_one_label_is_adapted_too() -> None:
    torch.manual_seed(0)
    model = FEAT(backbone="convnet").eval()
    one = torch.randn(1, 1, 64)
    with torch.no_grad():
        adapted = model.adapt(one)
        expected = model.slf_attn.layer_norm(one + model.slf_attn.fc(model.slf_attn.w_vs(one)))
    torch.testing.assert_close(adapted, expected)


def test_the_classifier_and_the_encoder_are_what_training_expects() -> None:
    model = cast(FEAT, models.create("feat", num_classes=7))
    images = torch.randn(2, 3, 84, 84)
    with torch.no_grad():
        assert model(images).shape == (2, 7)
        model.classifier = None
        torch.testing.assert_close(model(images), model.encode(images))
    assert model.backbone is model.encoder
    with pytest.raises(ModelError, match="backbone is 'resnet50'; allowed: convnet, resnet12, mobilenetv2"):
        models.create("feat", backbone="resnet50")


def _images(count: int, seed: int) -> torch.Tensor:
    """What the reference drew for the name ``image``."""
    holder = nn.Module()
    holder.register_buffer("image", torch.zeros(count, 3, 84, 84))
    load_recipe_weights(holder, seed=seed, gain=1.0)
    images: torch.Tensor = holder.image
    return images
