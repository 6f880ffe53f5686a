"""Circle loss: the published code's values and gradients, rows without a pair, what it wants, what it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgevis.losses import ReIDLoss, circle_logits, circle_loss
from runtime.common.arrays import Array
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

pytestmark = pytest.mark.torch

each_case = pytest.mark.parametrize("case", ["p4k4d32", "p6k3d48", "p5k2d16"])


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Array]]:
    with np.load(GOLDEN_FOLDER / "circle.npz") as file:
        yield dict(file)


def inputs(golden: dict[str, Array], case: str) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    feature = torch.from_numpy(golden[f"{case}/feature"]).requires_grad_()
    label = torch.from_numpy(golden[f"{case}/label"])
    return feature, label, float(golden[f"{case}/margin"]), float(golden[f"{case}/gamma"])


def assert_near(actual: torch.Tensor | None, expected: Array) -> None:
    assert actual is not None
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@each_case
@pytest.mark.parametrize(("pairs", "key"), [("all", "all_pairs"), ("per-anchor", "per_anchor")])
def test_values_and_gradients_by_pairs(case: str, pairs: str, key: str, golden: dict[str, Array]) -> None:
    """The gradient tells whether the weights are constants: the value does not."""
    feature, label, margin, gamma = inputs(golden, case)
    loss = circle_loss(feature, label, margin=margin, gamma=gamma, pairs=pairs)  # type: ignore[arg-type]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(golden[f"{case}/{key}_loss"]), rel=1e-5)
    assert_near(feature.grad, golden[f"{case}/{key}_grad"])


@each_case
def test_values_and_gradients_by_classes(case: str, golden: dict[str, Array]) -> None:
    feature, _, margin, gamma = inputs(golden, case)
    weight = torch.from_numpy(golden[f"{case}/class_weight"]).requires_grad_()
    target = torch.from_numpy(golden[f"{case}/class_target"])
    logits = circle_logits(feature, weight, target, margin=margin, gamma=gamma)
    assert_near(logits.detach(), golden[f"{case}/class_logits"])
    loss = functional.cross_entropy(logits, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(golden[f"{case}/class_loss"]), rel=1e-5)
    assert_near(feature.grad, golden[f"{case}/class_grad_feature"])
    assert_near(weight.grad, golden[f"{case}/class_grad_weight"])


def test_a_row_without_its_like_counts_nothing_and_has_a_gradient() -> None:
    torch.manual_seed(0)
    rows = torch.randn(5, 8, requires_grad=True)
    loss = circle_loss(rows, torch.tensor([0, 0, 1, 1, 2]))
    loss.backward()
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())
    assert float(loss.detach()) > 0


def test_what_is_apart_far_enough_costs_nothing() -> None:
    rows = torch.eye(3).repeat_interleave(2, 0)
    labels = torch.arange(3).repeat_interleave(2)
    assert float(circle_loss(rows, labels, margin=0.25)) < 1e-3
    assert float(circle_loss(rows, labels.flip(0).roll(1))) > 10


def test_it_is_a_term_of_the_re_id_loss() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    logits = torch.randn(6, 3)
    plain = ReIDLoss(warmup_epochs=0)([features], [logits], labels, epoch=0)
    both = ReIDLoss(warmup_epochs=0, circle_weight=0.5, circle_margin=0.3, circle_gamma=64)
    expected = plain + 0.5 * circle_loss(features, labels, margin=0.3, gamma=64)
    assert float(both([features], [logits], labels, epoch=0)) == pytest.approx(float(expected), rel=1e-6)
    alone = ReIDLoss(triplet_weight=0, circle_weight=1.0, warmup_epochs=5)
    assert float(alone([features], [logits], labels, epoch=0)) == pytest.approx(float(circle_loss(features, labels)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"margin": 1.5}, "margin is 1.5; allowed: 0 to 1"),
        ({"gamma": 0.0}, "gamma is 0.0; allowed: a finite number above 0"),
        ({"pairs": "some"}, "pairs is 'some'; allowed: per-anchor, all"),
    ],
)
def test_values_that_are_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        circle_loss(torch.eye(4), torch.tensor([0, 0, 1, 1]), **arguments)  # type: ignore[arg-type]


def test_batches_that_are_refused() -> None:
    for labels in ([0, 1, 2, 3], [0, 0, 0, 0]):
        with pytest.raises(InputError, match="no two rows of one identity, or all rows are of one"):
            circle_loss(torch.eye(4), torch.tensor(labels))
    with pytest.raises(InputError, match="NaN"):
        circle_loss(torch.full((2, 2), math.nan), torch.tensor([0, 1]))
    with pytest.raises(InputError, match="2 columns, class_weight 3"):
        circle_logits(torch.ones(2, 2), torch.ones(4, 3), torch.tensor([0, 1]))
