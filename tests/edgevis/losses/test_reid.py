"""Triplets, smoothed cross-entropy and EPRI-Net's sum of both, against the reference and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgevis import models
from edgevis.losses import ReIDLoss, hard_triplet_loss, smoothed_cross_entropy
from edgevis.models.epri_net import EPRINet
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER / "triplet_ce.npz"
CASES = ("p4k4", "p8k4", "p5k3_m1")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_hard_triplets(name: str, dtype: torch.dtype) -> None:
    golden = np.load(GOLDEN)
    assert set(golden["names"]) == set(CASES)
    features = torch.from_numpy(golden[f"{name}/feat"]).to(dtype).requires_grad_()
    labels = torch.from_numpy(golden[f"{name}/labels"])
    loss = hard_triplet_loss(features, labels, margin=float(golden[f"{name}/margin"]))
    loss.backward()
    assert loss.dtype == dtype
    # The loss is a difference of distances of some 10: float32 leaves 1e-6 of those.
    assert float(loss.detach()) == pytest.approx(
        float(golden[f"{name}/loss"]), rel=1e-6 if dtype.itemsize > 4 else 1e-5
    )
    assert features.grad is not None
    expected = golden[f"{name}/grad"]
    np.testing.assert_allclose(features.grad.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", CASES)
def test_smoothed_cross_entropy(name: str, smoothing: float) -> None:
    golden = np.load(GOLDEN)
    logits = torch.from_numpy(golden[f"{name}/ce_logits"]).double().requires_grad_()
    loss = smoothed_cross_entropy(logits, torch.from_numpy(golden[f"{name}/labels"]), smoothing)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(golden[f"{name}/ce_eps{smoothing}/loss"]), rel=1e-6)
    assert logits.grad is not None
    expected = golden[f"{name}/ce_eps{smoothing}/grad"]
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_triplets_by_hand() -> None:
    features = torch.tensor([[0.0], [1.0], [3.0], [3.5]])
    labels = torch.tensor([5, 5, 9, 9])
    # positive - negative per row: 1 - 3, 1 - 2, 0.5 - 2, 0.5 - 2.5; with margin 1.75: 0, 0.75, 0.25, 0.
    assert float(hard_triplet_loss(features, labels, 1.75)) == pytest.approx(0.25)
    assert float(hard_triplet_loss(features, labels)) == 0.0
    # An identity with one image is its own positive, at the smallest distance there is.
    assert float(hard_triplet_loss(features[:3], labels[:3], 2.5)) == pytest.approx((0.5 + 1.5 + 0.5) / 3, abs=1e-6)


def test_the_smallest_distance() -> None:
    """The root of the reference's 1e-12, also from a row to itself."""
    features = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert float(hard_triplet_loss(features, torch.tensor([0, 1]), 1.0)) == pytest.approx(1e-6)


def test_triplets_of_equal_images_have_a_finite_gradient() -> None:
    features = torch.ones(4, 3, requires_grad=True)
    loss = hard_triplet_loss(features, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.3)
    assert features.grad is not None
    assert not features.grad.any()


def test_near_images_far_from_the_origin_keep_their_distance() -> None:
    """Squared norms of 1e6 would swallow it in float32."""
    features = torch.tensor([[1000.0, 0.0], [1000.0, 0.01], [1000.0, 0.03]])
    found = hard_triplet_loss(features, torch.tensor([0, 0, 1]), 0.0)
    assert float(found) == pytest.approx(0.0)
    found = hard_triplet_loss(features, torch.tensor([0, 1, 0]), 0.0)
    assert float(found) == pytest.approx((0.02 + 0.0 + 0.01) / 3, rel=1e-4)


def test_half_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(8, 16), torch.arange(4).repeat_interleave(2)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = features.to(dtype)
        assert torch.equal(hard_triplet_loss(rounded, labels), hard_triplet_loss(rounded.float(), labels))


def test_triplets_refuse_what_they_cannot_rank() -> None:
    features, labels = torch.rand(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(InputError, match="all rows are of one identity"):
        hard_triplet_loss(features, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"features has shape \(0, 3\); allowed: \(B, d\)"):
        hard_triplet_loss(features[:0], labels[:0])
    with pytest.raises(InputError, match=r"features has shape \(4, 3, 1\)"):
        hard_triplet_loss(features[..., None], labels)
    with pytest.raises(InputError, match=r"labels have shape \(3,\) for 4 rows"):
        hard_triplet_loss(features, labels[:3])
    with pytest.raises(InputError, match=r"labels are of torch.float32"):
        hard_triplet_loss(features, labels.float())
    with pytest.raises(InputError, match=r"features is of torch\.int64"):
        hard_triplet_loss(labels[:, None], labels)
    with pytest.raises(InputError, match="features holds NaN or infinity"):
        hard_triplet_loss(features * math.nan, labels)
    for margin in (-0.1, math.nan):
        with pytest.raises(InputError, match="margin is"):
            hard_triplet_loss(features, labels, margin)


def test_smoothed_cross_entropy_refuses_what_does_not_fit() -> None:
    logits, labels = torch.rand(4, 3), torch.tensor([0, 0, 1, 2])
    with pytest.raises(InputError, match="labels go from 0 to 3; allowed: 0 to 2"):
        smoothed_cross_entropy(logits, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(InputError, match="labels go from -1 to 2"):
        smoothed_cross_entropy(logits, torch.tensor([0, 1, 2, -1]))
    for smoothing in (-0.1, 1.5, math.nan):
        with pytest.raises(InputError, match=r"smoothing is .* allowed: 0 to 1"):
            smoothed_cross_entropy(logits, labels, smoothing)
    with pytest.raises(InputError, match="logits holds NaN or infinity"):
        smoothed_cross_entropy(logits * math.inf, labels)


def heads(count: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    torch.manual_seed(0)
    labels = torch.tensor([0, 0, 3, 3, 1, 1])
    return [torch.randn(6, 4) for _ in range(count)], [torch.randn(6, 5) for _ in range(count)], labels


def test_reid_loss_is_equation_1() -> None:
    branches, logits, labels = heads(2)
    first, second = (F.cross_entropy(x, labels, label_smoothing=0.1) for x in logits)
    triplet = hard_triplet_loss(torch.cat(branches, 1), labels, 0.3)
    assert float(triplet) > 0
    found = ReIDLoss()(branches, logits, labels, epoch=10)
    torch.testing.assert_close(found, first + second + 6.375 * triplet)
    weighted = ReIDLoss(alpha=0.5, beta=2.0, triplet_weight=3.0)(branches, logits, labels, epoch=10)
    torch.testing.assert_close(weighted, 0.5 * first + 2 * second + 3 * triplet)
    wide = hard_triplet_loss(torch.cat(branches, 1), labels, 2.0)
    other = ReIDLoss(alpha=1.0, beta=0.0, smoothing=0.0, margin=2.0)(branches, logits, labels, epoch=10)
    torch.testing.assert_close(other, F.cross_entropy(logits[0], labels) + 6.375 * wide)


def test_only_the_triplet_counts_in_the_first_epochs() -> None:
    branches, logits, labels = heads(2)
    triplet = 6.375 * hard_triplet_loss(torch.cat(branches, 1), labels, 0.3)
    criterion = ReIDLoss()
    for epoch in (0, 9):
        torch.testing.assert_close(criterion(branches, logits, labels, epoch=epoch), triplet)
    assert float(criterion(branches, logits, labels, epoch=10)) > float(triplet) + 1
    assert float(ReIDLoss(warmup_epochs=0)(branches, logits, labels, epoch=0)) > float(triplet) + 1


def test_one_branch_and_several() -> None:
    """Beta weighs the mean of what is beside the backbone; without anything there it weighs nothing."""
    branches, logits, labels = heads(4)
    entropies = [F.cross_entropy(x, labels, label_smoothing=0.1) for x in logits]
    criterion = ReIDLoss(beta=2.0, triplet_weight=0.0, warmup_epochs=0)
    torch.testing.assert_close(criterion(branches[:1], logits[:1], labels, epoch=0), entropies[0])
    several = entropies[0] + 2 * torch.stack(entropies[1:]).mean()
    torch.testing.assert_close(criterion(branches, logits, labels, epoch=0), several)


@pytest.mark.parametrize("name", ["epri-net", "epri-net-baseline", "epri-net-fpb"])
def test_reid_loss_trains_epri_net(name: str) -> None:
    """The warm-up leaves the classifiers alone; after it all that may learn does."""
    torch.manual_seed(0)
    model = models.create(name, num_identities=4).train()
    assert isinstance(model, EPRINet)
    labels = torch.tensor([0, 0, 3, 3])
    branches = model.branches(torch.rand(4, 3, 96, 32))
    logits = model.logits(branches)
    criterion = ReIDLoss(margin=10.0)  # beyond any distance here: every triplet counts
    criterion(branches, logits, labels, epoch=0).backward(retain_graph=True)
    heads = ("classifier", "neck")
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.startswith(heads)}
    criterion(branches, logits, labels, epoch=10).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {name for name, _ in model.named_parameters() if "neck" in name and name.endswith("bias")}


def test_reid_loss_refuses_what_does_not_fit() -> None:
    branches, logits, labels = heads(2)
    criterion = ReIDLoss()
    with pytest.raises(InputError, match="2 branches and 1 logits"):
        criterion(branches, logits[:1], labels, epoch=0)
    with pytest.raises(InputError, match="0 branches and 0 logits"):
        criterion([], [], labels, epoch=0)
    with pytest.raises(InputError, match="epoch is -1"):
        criterion(branches, logits, labels, epoch=-1)
    with pytest.raises(InputError, match="branch 1 has 5 rows, branch 0 has 6"):
        criterion([branches[0], branches[1][:5]], logits, labels, epoch=0)
    with pytest.raises(InputError, match="branch 1 holds NaN"):
        criterion([branches[0], branches[1] * math.nan], logits, labels, epoch=0)
    with pytest.raises(InputError, match="labels go from 0 to 7; allowed: 0 to 4"):
        criterion(branches, logits, labels.where(labels != 3, torch.tensor(7)), epoch=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"beta": math.nan}, "beta is nan"),
        ({"triplet_weight": math.inf}, "triplet_weight is inf"),
        ({"smoothing": 2.0}, "smoothing is 2.0"),
        ({"margin": -0.3}, "margin is -0.3"),
        ({"warmup_epochs": -1}, "warmup_epochs is -1"),
        ({"triplet_weight": 0.0}, "warmup_epochs is 10 with triplet_weight 0.0"),
    ],
)
def test_reid_loss_refuses_senseless_settings(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ReIDLoss(**options)  # type: ignore[arg-type]
