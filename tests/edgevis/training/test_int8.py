"""Quantisation-aware training: the rounding, its gradient, and what a training with it keeps."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgevis.layers.mbconv import SameConv2d, SqueezeExcite
from edgevis.provenance import read_provenance
from edgevis.train import main
from edgevis.training.int8 import begin_int8, end_int8, rounded_values, rounded_weight

from training_data import write_masks

pytestmark = pytest.mark.torch


def small_net() -> nn.Module:
    return nn.Sequential(
        SameConv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), SqueezeExcite(4, 2), nn.Flatten(), nn.Linear(64, 5)
    )


def test_values_lie_on_255_levels() -> None:
    values = torch.randn(2, 3, 5, 5)
    rounded = rounded_values(values)
    levels = rounded.unique()
    step = float(levels.diff().min())
    assert len(levels) <= 255
    np.testing.assert_allclose((levels / step).round() * step, levels, atol=1e-5)
    assert float((rounded - values).abs().max()) < float(values.abs().max()) / 20
    assert not rounded_values(torch.zeros(3)).any()


def test_an_outlier_is_cut_off() -> None:
    values = torch.cat([torch.tensor([0.0, 40.0]), torch.randn(100_000)])
    assert float(rounded_values(values).max()) < 20


def test_weights_have_a_range_for_each_output() -> None:
    weight = torch.randn(3, 2, 3, 3) * torch.tensor([0.01, 1.0, 100.0])[:, None, None, None]
    rounded = rounded_weight(weight)
    amax = weight.flatten(1).abs().amax(1)
    assert bool(((rounded - weight).flatten(1).abs().amax(1) <= amax / 254 * 1.001).all())
    # Folding a batch norm scales each output, which changes no level.
    scale = torch.tensor([3.0, 0.2, 7.0])[:, None, None, None]
    torch.testing.assert_close(rounded_weight(weight * scale), rounded * scale)
    assert not rounded_weight(torch.zeros(2, 3)).any()


def test_gradients_pass_within_the_range() -> None:
    values = torch.cat([torch.tensor([0.0, 40.0]), torch.randn(100_000)]).requires_grad_()
    rounded_values(values).sum().backward()
    assert values.grad is not None
    assert values.grad[1] == 0
    assert float(values.grad.mean()) > 0.98


def test_layers_round_and_are_float_again_afterwards() -> None:
    net, image = small_net().eval(), torch.randn(2, 3, 8, 8)
    names, plain = list(net.state_dict()), net(image)
    copied = copy.deepcopy(net)
    assert begin_int8(net) == begin_int8(net) == 4
    assert list(net.state_dict()) == names
    first, last = net[0], net[-1]
    expected = F.conv2d(rounded_values(first.pad(image)), rounded_weight(first.weight), stride=2)
    torch.testing.assert_close(first(image), expected)
    # Squeeze-and-excitation works on one place.
    excite, maps = net[3], torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(excite(maps), copied[3](maps), rtol=0, atol=0)
    rows = torch.randn(2, 64)
    torch.testing.assert_close(last(rows), F.linear(rounded_values(rows), rounded_weight(last.weight), last.bias))
    assert not torch.equal(net(image), plain)
    torch.testing.assert_close(copy.deepcopy(net)(image), net(image), rtol=0, atol=0)
    end_int8(net)
    assert [type(part) for part in net.modules()] == [type(part) for part in copied.modules()]
    torch.testing.assert_close(net(image), plain, rtol=0, atol=0)


def test_a_network_gets_used_to_rounding() -> None:
    """Hidden values of very different sizes, which float does not mind and one range for all of them does."""
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    inputs = torch.randn(512, 8)
    targets = inputs.sum(1, keepdim=True).tanh()

    def train(steps: int, rate: float = 3e-3) -> float:
        optimizer = torch.optim.Adam(net.parameters(), rate)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.mse_loss(net(inputs), targets)
            loss.backward()
            optimizer.step()
        return float(F.mse_loss(net(inputs), targets).detach())

    train(1000)
    sizes = torch.logspace(-1, 1, 32)
    for tensor, factor in ((net[0].weight, sizes[:, None]), (net[0].bias, sizes), (net[2].weight, 1 / sizes)):
        tensor.data *= factor
    in_float = train(0)
    begin_int8(net)
    before = train(0)
    assert before > 5 * in_float
    train(400, 1e-3)
    assert train(200, 1e-4) < 0.7 * before


def test_a_training_chooses_among_its_int8_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["enet", "--data", str(write_masks(tmp_path / "data")), "--output", str(tmp_path / "run")]
    words += ["--option", "side=64", "--set", "epochs=3", "--set", "steps_per_epoch=1", "--set", "batch=2"]
    assert main([*words, "--set", "int8_epochs=1", "--set", "ema_decay=0.5"]) == 0
    assert "layers compute as in INT8 from here on" in capsys.readouterr().out
    provenance = read_provenance(tmp_path / "run" / "best.safetensors")
    assert provenance is not None
    assert provenance.epoch == 3  # the only one in INT8
    with open(tmp_path / "run" / "log.csv") as file:
        assert len(list(csv.DictReader(file))) == 3
