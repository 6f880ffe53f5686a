"""Momentum contrast: five steps of the published code, the order of a step, batch norms, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from edgevis.losses import MomentumContrast, projection_head
from runtime.common.arrays import Array
from runtime.errors import InputError

from locations import GOLDEN_FOLDER

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Array]]:
    with np.load(GOLDEN_FOLDER / "moco.npz") as file:
        yield dict(file)


class Tiny(nn.Module):
    """The reference's encoder: a layer, tanh, and the head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(10, 14), head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(torch.tanh(self.body(x)))
        return result


@pytest.mark.parametrize("version", [1, 2])
def test_five_steps(version: int, golden: dict[str, Array]) -> None:
    case = f"v{version}"
    dimension, queue, momentum, temperature, rate, inertia, decay = golden[f"{case}/dim_K_m_T_lr_momentum_wd"].tolist()
    head = nn.Linear(14, 6) if version == 1 else projection_head(14, 6)
    query = Tiny(head)
    start = {name: torch.from_numpy(golden[f"{case}/w0/{name}"]) for name in query.state_dict()}
    query.load_state_dict(start)
    contrast = MomentumContrast(
        copy.deepcopy(query), dimension=int(dimension), queue=int(queue), momentum=momentum, temperature=temperature
    )
    contrast.queue.copy_(torch.from_numpy(golden[f"{case}/queue0"]))
    optimizer = torch.optim.SGD(query.parameters(), lr=rate, momentum=inertia, weight_decay=decay)
    for step in range(5):
        at = f"{case}/step{step}"
        loss, logits = contrast(query, torch.from_numpy(golden[f"{at}/x_q"]), torch.from_numpy(golden[f"{at}/x_k"]))
        assert float(loss.detach()) == pytest.approx(float(golden[f"{at}/loss"]), rel=1e-4)
        np.testing.assert_allclose(logits.detach().numpy(), golden[f"{at}/logits"], rtol=1e-3, atol=1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        np.testing.assert_allclose(contrast.queue.numpy(), golden[f"{at}/queue"], rtol=0, atol=1e-4)
        assert int(contrast.pointer) == int(golden[f"{at}/pointer"][0])
    for side, encoder in (("q_end", query), ("k_end", contrast.key_encoder)):
        for name, value in encoder.state_dict().items():
            expected = golden[f"{case}/{side}/{name}"]
            np.testing.assert_allclose(value.numpy(), expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_version_1_has_a_head_of_one_layer() -> None:
    assert [type(part) for part in projection_head(8, 4, layers=1)] == [nn.Linear]


def test_batch_norms_see_groups_of_keys_and_do_not_follow() -> None:
    torch.manual_seed(0)
    query = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    contrast = MomentumContrast(copy.deepcopy(query), dimension=4, queue=8, momentum=0.5, groups=2)
    key = contrast.key_encoder
    assert isinstance(key, nn.Sequential)
    assert not any(parameter.requires_grad for parameter in key.parameters())
    first, second = torch.randn(8, 6), torch.randn(8, 6) + 3
    contrast.key_encoder.eval()  # as a training does with batch norms that are not trained
    contrast(query, first, second)
    norm, leading = key[1], query[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert int(norm.num_batches_tracked) == 2  # type: ignore[arg-type]
    assert int(leading.num_batches_tracked) == 1  # type: ignore[arg-type]
    assert norm.running_mean is not None
    assert not torch.allclose(norm.running_mean, leading.running_mean)  # type: ignore[arg-type]
    # Each group by itself has mean zero; the order of the keys is the queries' again.
    torch.manual_seed(3)
    order = torch.randperm(8)
    torch.manual_seed(3)
    keys = contrast._keys(second)
    for part in order.chunk(2):
        torch.testing.assert_close(keys[part].mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    contrast.begin(query)
    torch.testing.assert_close(norm.running_mean, leading.running_mean)


def test_values_that_are_refused() -> None:
    encoder = nn.Linear(3, 2)
    for values, said in (
        ({"queue": 0}, "allowed: 1 or more"),
        ({"momentum": 1.0}, "momentum is 1.0; allowed: from 0 to below 1"),
        ({"temperature": 0.0}, "temperature is 0.0; allowed: a finite number above 0"),
    ):
        with pytest.raises(InputError, match=said):
            MomentumContrast(encoder, **{"dimension": 2, **values})  # type: ignore[arg-type]
    contrast = MomentumContrast(encoder, dimension=2, queue=10, groups=3)
    with pytest.raises(InputError, match="a batch that divides the queue and is divided by the groups"):
        contrast(encoder, torch.zeros(4, 3), torch.zeros(4, 3))
