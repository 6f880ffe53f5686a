"""PointRend's parts against the published code's values: points, uncertainty, subdivision, losses, the FPN."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevis import models
from edgevis.layers.fpn import FPN, SemanticFPNHead, doubled
from edgevis.layers.point_rend import (
    PointHead,
    point_labels,
    point_sample,
    sample_at_pixels,
    subdivide,
    training_points,
    uncertainty,
)
from edgevis.losses import point_rend_loss
from export.onnx import onnx_from_module
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import InputError

from locations import GOLDEN_FOLDER
from recipe_weights import load_recipe_weights

pytestmark = pytest.mark.torch

Golden = dict[str, Tensor]
_STEPS, _POINTS, _TRAINED = 2, 60, 24


@pytest.fixture(scope="module")
def golden() -> Iterator[Golden]:
    with np.load(GOLDEN_FOLDER / "pointrend.npz") as file:
        yield {key: torch.from_numpy(file[key]) for key in file}


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


class Semantic(nn.Module):
    """The published semantic model behind its pyramid, by its names."""

    def __init__(self, *, coarse_each_layer: bool) -> None:
        super().__init__()
        self.coarse_sem_seg_head = SemanticFPNHead(16, width=32, classes=5)
        self.point_head = PointHead(16, classes=5, width=16, coarse_each_layer=coarse_each_layer)


def pixel_centres(index: Tensor, size: tuple[int, int]) -> Tensor:
    """Flat pixel numbers (N, P) of a grid of ``size`` (H, W) -> their centres (N, P, 2): x, y, 0..1."""
    return torch.stack([(index % size[1] + 0.5) / size[1], (index // size[1] + 0.5) / size[0]], -1)


def test_points_are_sampled_as_published(golden: Golden) -> None:
    grid = golden["sample/map"]
    assert_near(point_sample(grid, golden["sample/xy"]), golden["sample/bilinear"])
    for channel in range(grid.shape[1]):
        nearest = point_labels(grid[:, channel], golden["sample/xy"])
        assert torch.equal(nearest, golden["sample/nearest"][:, channel])


def test_far_outside_of_a_map_there_are_zeros() -> None:
    outside = torch.tensor([[[-9.0, 0.5], [0.5, 9.0], [3.0, -3.0], [1.2, 0.5]]])
    assert not point_sample(torch.ones(1, 2, 4, 4), outside).any()
    assert not point_labels(torch.ones(1, 4, 4), outside).any()


def test_uncertainty(golden: Golden) -> None:
    assert_near(uncertainty(golden["uncertainty/semantic_logits"]), golden["uncertainty/semantic"])
    of_class = golden["uncertainty/mask_logits"][torch.arange(3), golden["uncertainty/mask_classes"]][:, None]
    assert_near(uncertainty(of_class), golden["uncertainty/mask"])
    # One class is two, of which the other is always 0.
    assert torch.equal(uncertainty(torch.cat([of_class, torch.zeros_like(of_class)], 1)), uncertainty(of_class))


def test_pixels_are_where_their_centres_are(golden: Golden) -> None:
    assert_near(pixel_centres(golden["grid/indices"], (8, 10)), golden["grid/xy"])
    coarse = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    for ratio in (1, 2, 4, 8):
        index = torch.arange(35 * ratio**2).expand(2, -1)
        xy = pixel_centres(index, (5 * ratio, 7 * ratio))
        torch.testing.assert_close(
            sample_at_pixels(coarse, index, ratio=ratio), point_sample(coarse, xy), atol=1e-5, rtol=0
        )


def test_training_points(golden: Golden) -> None:
    logits = golden["uncertainty/semantic_logits"].clone().requires_grad_()
    draws = (golden["train_points/rand_oversampled"], golden["train_points/rand_rest"])
    chosen = training_points(logits, _TRAINED, draws=draws)
    assert not chosen.requires_grad
    assert_near(chosen, golden["train_points/xy"])
    with pytest.raises(InputError, match="draws are"):
        training_points(torch.zeros(2, 1, 4, 4), 8, draws=(torch.zeros(2, 8, 2), torch.zeros(2, 2, 2)))
    drawn = training_points(torch.zeros(2, 1, 4, 4), 8)
    assert drawn.shape == (2, 8, 2)
    assert 0 <= drawn.min() <= drawn.max() <= 1


@pytest.mark.parametrize("each", [False, True])
def test_semantic_model(golden: Golden, each: bool) -> None:
    """Inference and both losses of the published model, whose weights follow from its names."""
    key = f"semantic_each{int(each)}"
    net = Semantic(coarse_each_layer=each)
    load_recipe_weights(net, seed=int(golden["seed"]), gain=1.3)
    maps = [golden[f"{key}/p{level}"] for level in (2, 3, 4, 5)]
    with torch.no_grad():
        coarse = net.coarse_sem_seg_head(maps)
        refined = subdivide(coarse, maps[0], net.point_head, points=_POINTS, steps=_STEPS)
    assert_near(coarse, golden[f"{key}/coarse_logits"])
    assert_near(refined, golden[f"{key}/logits"])
    target = golden[f"{key}/target"].long()
    whole = functional.cross_entropy(
        functional.interpolate(coarse, scale_factor=4.0, mode="bilinear"), target, ignore_index=255
    )
    assert_near(0.5 * whole, golden[f"{key}/loss_coarse"])
    xy = training_points(coarse, _TRAINED, draws=(golden[f"{key}/rand_oversampled"], golden[f"{key}/rand_rest"]))
    logits = net.point_head(point_sample(maps[0], xy), point_sample(coarse, xy))
    assert_near(point_rend_loss(logits, xy, target), golden[f"{key}/loss_point"])


def test_loss_of_one_class() -> None:
    """The cross-entropy of two classes, of which the background's logit is 0; ignored points are left out."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 30, generator=random)
    xy = torch.rand(2, 30, 2, generator=random)
    labels = torch.randint(0, 2, (2, 6, 8), generator=random)
    labels[:, :2] = 255
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(point_rend_loss(logits, xy, labels), point_rend_loss(both, xy, labels))
    with pytest.raises(InputError, match=r"logits are \(2, 1, 30\), xy \(2, 29, 2\)"):
        point_rend_loss(logits, xy[:, 1:], labels)


def test_published_counts() -> None:
    """Cityscapes' 19 classes on a pyramid of 256 channels, and the instance model's head of 80 classes."""
    assert models.parameters(PointHead(256, classes=19)) == 207_123
    assert models.parameters(PointHead(256, classes=80, coarse_each_layer=True)) == 285_776
    assert models.parameters(SemanticFPNHead(256, width=128, classes=19)) == 1_626_259
    assert models.parameters(FPN((32, 64, 160, 384), channels=128)) == 672_768


def test_pyramid_adds_from_coarse_to_fine() -> None:
    torch.manual_seed(0)
    net = FPN((3, 4, 5, 6), channels=8)
    maps = [torch.randn(1, count, 16 >> place, 8 >> place) for place, count in enumerate((3, 4, 5, 6))]
    with torch.no_grad():
        results = net(maps)
        lateral = [net.get_submodule(f"fpn_lateral{level}")(x) for level, x in zip((2, 3, 4, 5), maps, strict=True)]
        for place, result in enumerate(results):
            merged = sum(
                x.repeat_interleave(1 << step, 2).repeat_interleave(1 << step, 3)
                for step, x in enumerate(lateral[place:])
            )
            torch.testing.assert_close(result, net.get_submodule(f"fpn_output{place + 2}")(merged))


def test_only_the_most_uncertain_points_are_replaced() -> None:
    torch.manual_seed(0)
    coarse, fine = torch.randn(2, 1, 6, 4), torch.randn(2, 8, 6, 4)
    head = PointHead(8, classes=1, width=4)
    refined = subdivide(coarse, fine, head, points=5, steps=1)
    changed = refined != doubled(coarse)
    assert changed.flatten(1).sum(1).tolist() == [5, 5]
    for certainty, replaced in zip(uncertainty(doubled(coarse)), changed, strict=True):
        assert certainty[replaced].min() >= certainty[~replaced].max()
    assert (refined[changed].abs() < 0.1).all()


class Refined(nn.Module):
    """Two maps, subdivided twice."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 8, 1)
        self.point_head = PointHead(8, classes=2, width=8)

    def segment(self, image: Tensor) -> Tensor:
        """(N, 3, h, w) -> (N, 2, 4 h, 4 w)."""
        return subdivide(self.coarse(image), self.fine(image), self.point_head, points=50, steps=2)


def test_engines_read_the_same_places() -> None:
    """At sides that are no powers of two; places are computed in integers, and GridSample is not needed."""
    torch.manual_seed(0)
    net = Refined()
    nn.init.normal_(net.point_head.predictor.weight)  # what is refined is far from what was there
    image, outputs = TensorSpec("image", "float32", ("N", 3, 7, 11)), TensorSpec("logits", "float32", ("N", 2, 28, 44))
    model = onnx_from_module(net, Graph("segment", (image,), (outputs,)))
    assert not {node.op_type for node in model.graph.node} & {"Floor", "Mod", "GridSample", "GatherND", "ScatterND"}
    x = torch.randn(3, 3, 7, 11)
    with torch.no_grad():
        expected = net.segment(x).numpy()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    feed = {"image": x.numpy()}
    for actual in (session.run(None, feed)[0], compiled(feed)[0]):
        assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()
