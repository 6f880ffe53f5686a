"""The order of a training's weights in memory."""

from __future__ import annotations

import pytest
import torch

from edgevis import models
from edgevis.layers.dynamic_conv import DynamicConv2d
from edgevis.training.memory import use_channels_last

pytestmark = pytest.mark.torch


def test_images_and_kernels_move_and_keep_their_values() -> None:
    plain, dynamic = torch.nn.Conv2d(4, 8, 3), DynamicConv2d(4, 8, 3, hidden=2)
    module = torch.nn.ModuleList([plain, dynamic])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    use_channels_last(module)
    assert plain.weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain.weight.is_contiguous()
    assert dynamic.weight.ndim == 5
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert plain.weight.requires_grad


@pytest.mark.parametrize("name", models.names())
def test_every_model_s_weights_can_move(name: str) -> None:
    with torch.device("meta"):
        module = models.create(name)
    use_channels_last(module)
    moved = [tensor for tensor in module.parameters() if tensor.ndim == 4]
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in moved)
