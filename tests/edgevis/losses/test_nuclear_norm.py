"""Batch nuclear-norm maximisation: the formulas' values and gradients, its bounds, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edgevis.losses import BatchNuclearNormLoss, batch_nuclear_norm
from runtime.common.arrays import Array
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

pytestmark = pytest.mark.torch

KEYS = {
    "nuclear_sum": {"reduction": "sum"},
    "nuclear_over_batch": {"reduction": "batch"},
    "nuclear_mean": {"reduction": "mean"},
    "fbnm_sum": {"reduction": "sum", "norm": "fast"},
    "fbnm_mean": {"reduction": "mean", "norm": "fast"},
    "bfm": {"reduction": "mean", "norm": "frobenius"},
}


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Array]]:
    with np.load(GOLDEN_FOLDER / "bnm.npz") as file:
        yield dict(file)


@pytest.mark.parametrize("case", ["b36c31", "b12c65", "b64c5", "b8c8"])
@pytest.mark.parametrize("key", KEYS)
def test_values_and_gradients(case: str, key: str, golden: dict[str, Array]) -> None:
    logits = torch.from_numpy(golden[f"{case}/logits"]).requires_grad_()
    loss = batch_nuclear_norm(logits, **KEYS[key])  # type: ignore[arg-type]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(golden[f"{case}/{key}"]), rel=2e-5)
    if f"{case}/{key}_grad" in golden:
        assert logits.grad is not None
        expected = golden[f"{case}/{key}_grad"]
        np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_least_is_sure_and_diverse_and_the_most_says_nothing() -> None:
    rows, classes = 12, 4
    sure = 1e4 * torch.eye(classes).repeat(rows // classes, 1)
    one = 1e4 * torch.eye(classes)[:1].repeat(rows, 1)
    norm = {name: -float(batch_nuclear_norm(x, reduction="sum")) for name, x in (("sure", sure), ("one", one))}
    nothing = -float(batch_nuclear_norm(torch.zeros(rows, classes), reduction="sum"))
    assert norm["sure"] == pytest.approx(math.sqrt(rows * classes), rel=1e-5)
    assert norm["one"] == pytest.approx(math.sqrt(rows), rel=1e-5)
    assert nothing == pytest.approx(math.sqrt(rows / classes), rel=1e-5)


def test_answers_become_sure_and_rare_classes_stay_where_entropy_alone_gives_them_up() -> None:
    """One shift for all rows, which both losses move along with the rows: the paper's figure 1."""

    def entropy(logits: torch.Tensor) -> torch.Tensor:
        return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()

    torch.manual_seed(0)
    rows, start = torch.randn(32, 4), torch.tensor([1.5, 0.0, 0.0, 0.0])
    shares = []
    for loss in (batch_nuclear_norm, entropy):
        shift, scale = start.clone().requires_grad_(), torch.ones(1, requires_grad=True)
        for _ in range(200):
            gradient = torch.autograd.grad(loss(scale * (rows + shift)), (shift, scale))
            shift, scale = ((x - g).detach().requires_grad_() for x, g in zip((shift, scale), gradient, strict=True))
        after = (scale * (rows + shift)).detach().softmax(1)
        assert after.amax(1).mean() > (rows + start).softmax(1).amax(1).mean() + 0.1
        shares.append(float(after.mean(0).min()))
    assert shares[0] > 4 * shares[1]


def test_several_classifiers_and_float16() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(6, 3), torch.randn(6, 5)
    loss = BatchNuclearNormLoss(weight=2.0)
    expected = batch_nuclear_norm(first) + batch_nuclear_norm(second)
    assert float(loss(first, second)) == pytest.approx(float(expected), rel=1e-6)
    assert loss(first.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"reduction": "none"}, "reduction is 'none'; allowed: batch, mean, sum"),
        ({"norm": "l1"}, "norm is 'l1'; allowed: nuclear, fast, frobenius"),
        ({"norm": "frobenius"}, "with reduction 'batch'; allowed: mean, sum"),
    ],
)
def test_what_is_refused(arguments: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        batch_nuclear_norm(torch.zeros(2, 2), **arguments)  # type: ignore[arg-type]


def test_a_weight_below_zero_and_nan_are_refused() -> None:
    with pytest.raises(InputError, match="weight is -1"):
        BatchNuclearNormLoss(weight=-1)
    with pytest.raises(InputError, match="NaN"):
        batch_nuclear_norm(torch.full((2, 2), math.nan))
