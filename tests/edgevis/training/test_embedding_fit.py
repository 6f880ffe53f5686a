"""The layer of an embedding, fitted to a teacher's; what freezing batch norms keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgevis import models
from edgevis.training.embedding_fit import fit_embedding, ridge
from edgevis.training.freeze import fold_statistics, measure_new_statistics
from runtime.errors import ModelError

pytestmark = pytest.mark.torch


def test_ridge_is_least_squares_with_shrunken_coefficients() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.randn(40, 3)
    np.testing.assert_allclose(ridge(x, y, shrink=0), np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-5)
    # The penalty as so many rows more, whose targets are zero.
    weight = float(0.1 * (x**2).mean() * len(x)) ** 0.5
    rows, zeros = torch.cat([x, weight * torch.eye(6)]), torch.cat([y, torch.zeros(6, 3)])
    np.testing.assert_allclose(ridge(x, y, shrink=0.1), np.linalg.lstsq(rows, zeros, rcond=None)[0], atol=1e-5)


@pytest.mark.parametrize("last", [nn.ReLU(), nn.PReLU(init=0.3)])
def test_cosines_become_the_targets(last: nn.Module) -> None:
    """Targets that are a linear map of the features: a signed layer gives their cosines, a ReLU their order."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(12, 400), nn.BatchNorm1d(400), last).eval()
    features = torch.rand(300, 12)
    targets = features @ torch.randn(12, 7) + torch.randn(7)
    length = layer(features).norm(dim=1).mean()
    before = _correlation(layer, features, targets)
    fit_embedding(layer, features, targets)
    with torch.no_grad():
        assert float(layer(features).norm(dim=1).mean()) == pytest.approx(float(length), rel=1e-4)
        if isinstance(last, nn.PReLU):
            torch.testing.assert_close(_cosines(layer(features)), _cosines(targets), rtol=0, atol=0.1)
        else:
            assert float(layer(features).min()) == 0
            assert before < 0.8 < 0.97 < _correlation(layer, features, targets - targets.mean(0))


def test_a_linear_layer_alone_predicts_the_targets() -> None:
    torch.manual_seed(0)
    layer, features = nn.Linear(12, 9), torch.rand(300, 12)
    targets = features @ torch.randn(12, 7) + torch.randn(7)
    fit_embedding(layer, features, targets)
    with torch.no_grad():
        torch.testing.assert_close(_cosines(layer(features)), _cosines(targets), rtol=0, atol=0.1)


def test_a_layer_of_other_modules_is_refused() -> None:
    with pytest.raises(ModelError, match="not made of Linear, alone or with BatchNorm1d"):
        fit_embedding(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(5, 3), torch.randn(5, 2))


def test_only_batch_norms_that_have_seen_nothing_are_measured() -> None:
    torch.manual_seed(0)
    model = models.create("epri-net-pam", backbone="efficientnet-lite0", height=128, num_identities=0)
    norms = {name: part for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for name, norm in norms.items():
        if name.startswith("backbone."):
            norm.running_mean = torch.full_like(norm.weight, 0.1).detach()
    before = {name: torch.as_tensor(norm.running_mean).clone() for name, norm in norms.items()}
    images = [torch.randn(2, 3, 128, 64) for _ in range(2)]
    assert measure_new_statistics(model, images) == 3
    for name, norm in norms.items():
        same = torch.equal(torch.as_tensor(norm.running_mean), before[name])
        assert same == name.startswith("backbone."), name
        assert (norm.training, norm.momentum) == (False, 0.1)


def test_statistics_move_into_scale_and_shift() -> None:
    torch.manual_seed(0)
    model = models.create("osnet-x0-25").train()
    with torch.no_grad():
        for _ in range(2):
            model(3 * torch.randn(4, 3, 256, 128) + 1)
        model.eval()
        image = torch.randn(2, 3, 256, 128)
        expected = model(image)
        fold_statistics(model)
        torch.testing.assert_close(model(image), expected, rtol=1e-3, atol=1e-4)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms
    assert all(not torch.as_tensor(norm.running_mean).any() for norm in norms)
    assert all(
        torch.equal(torch.as_tensor(norm.running_var), torch.full_like(norm.weight, 1 - norm.eps)) for norm in norms
    )


def _cosines(rows: Tensor) -> Tensor:
    unit = nn.functional.normalize(rows)
    return (unit @ unit.T)[~torch.eye(len(rows), dtype=torch.bool)]


def _correlation(layer: nn.Module, features: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float(torch.corrcoef(torch.stack([_cosines(layer(features)), _cosines(targets)]))[0, 1])
