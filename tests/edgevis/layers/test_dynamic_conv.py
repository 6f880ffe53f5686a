"""Dynamic convolution: the reference's values and gradients, both forms, and the temperature in a training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edgevis import models
from edgevis.layers.dynamic_conv import DynamicConv2d, KernelAttention
from edgevis.models.dy_mobilenetv2 import DynamicMobileNetV2
from runtime.common.arrays import Array
from runtime.errors import ModelError

from locations import GOLDEN_FOLDER

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def golden() -> Iterator[dict[str, Array]]:
    with np.load(GOLDEN_FOLDER / "dynamic_conv.npz") as file:
        yield dict(file)


def assert_near(actual: torch.Tensor | None, expected: Array) -> None:
    assert actual is not None
    assert np.abs(actual.detach().numpy() - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("case", ["pointwise", "depthwise", "full", "rgb", "grouped"])
def test_values_and_gradients(case: str, golden: dict[str, Array]) -> None:
    sizes = golden[f"{case}/in_out_kernel_stride_pad_groups_K_temperature"]
    inputs, outputs, kernel, stride, padding, groups, kernels = map(int, sizes[:7])
    weights = {key.removeprefix(f"{case}/w/"): golden[key] for key in golden if key.startswith(f"{case}/w/")}
    layer = DynamicConv2d(
        inputs,
        outputs,
        kernel,
        stride=stride,
        padding=padding,
        groups=groups,
        kernels=kernels,
        hidden=len(weights["attention.fc1.weight"]),
        bias="bias" in weights,
    )
    missing = layer.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()}, strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["attention.temperature"], [])
    layer.attention.temperature.fill_(float(sizes[7]))
    x = torch.from_numpy(golden[f"{case}/x"]).requires_grad_()
    result = layer(x)
    (result * torch.from_numpy(golden[f"{case}/upstream"])).sum().backward()
    assert_near(layer.attention(x), golden[f"{case}/attention"])
    assert_near(result, golden[f"{case}/out"])
    assert_near(x.grad, golden[f"{case}/grad_x"])
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    for name in weights:
        assert_near(gradients[name], golden[f"{case}/grad/{name}"])


def test_groups_that_do_not_divide() -> None:
    with pytest.raises(ModelError, match="groups is 3; allowed: what divides 4 and 8 channels"):
        DynamicConv2d(4, 8, 3, groups=3, hidden=1)


def test_all_but_the_first_convolution_of_the_network_are_dynamic() -> None:
    model = models.create("dy-mobilenetv2", num_classes=0)
    assert isinstance(model, DynamicMobileNetV2)
    attentions = [module for module in model.modules() if isinstance(module, KernelAttention)]
    assert len(attentions) == 51  # MobileNetV2's convolutions but for the stem's
    assert all(float(module.temperature) == 1 for module in attentions)


def test_the_temperature_falls_from_30_to_1_in_ten_epochs_and_is_stored() -> None:
    model = models.create("dy-mobilenetv2", num_classes=0)
    assert isinstance(model, DynamicMobileNetV2)
    name = "conv_head.attention.temperature"
    found = []
    for epochs in (0.0, 5.0, 10.0, 12.5):
        model.begin_step(0, epochs=epochs)
        found.append(float(model.state_dict()[name]))
    assert found == [30.0, 15.5, 1.0, 1.0]
