"""The ResNet backbone: torchvision's names, sizes and form v1.5; features before the last ReLU of each block."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

from edgevis import models
from edgevis.layers.resnet import Bottleneck, ResNet, load_imagenet_weights, resnet50, resnet101
from runtime.errors import InputError, ModelError, WeightsError

from locations import GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER


def published(model: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict as it is published: all tensors other than the model's own, counters included."""
    return {name: torch.full_like(tensor, 2) for name, tensor in model.state_dict().items()}


def test_published_sizes() -> None:
    assert models.parameters(resnet50(num_classes=1000)) == 25_557_032
    assert models.parameters(resnet50()) == 23_508_032
    assert models.parameters(resnet101(num_classes=1000)) == 44_549_160
    assert models.parameters(resnet101()) == 42_500_160
    assert resnet50().channels == (256, 512, 1024, 2048)


def test_torchvision_names_in_torchvision_order() -> None:
    with (GOLDEN / "06_backbone_name_table.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = {
        row["official_name"].removeprefix("backbone."): tuple(int(size) for size in row["shape"].split("x"))
        for row in rows
    }
    state = resnet50(width=4).state_dict()
    found = {name: tuple(x.shape) for name, x in state.items() if not name.endswith("num_batches_tracked")}
    assert list(found.items()) == list(expected.items())
    named = resnet50(num_classes=1000).state_dict()
    assert tuple(named["fc.weight"].shape) == (1000, 2048)
    assert tuple(named["layer2.0.downsample.1.running_var"].shape) == (512,)
    assert len(named) == 320


def test_the_stride_sits_on_the_3x3_convolution() -> None:
    block = Bottleneck(8, 4, stride=2)
    assert [block.conv1.stride, block.conv2.stride, block.conv3.stride] == [(1, 1), (2, 2), (1, 1)]


def test_a_published_state_dict_loads_with_and_without_its_classifier() -> None:
    state = published(ResNet((1, 1, 1, 1), width=2, num_classes=3))
    whole = ResNet((1, 1, 1, 1), width=2, num_classes=3)
    whole.load_state_dict(state)  # strict
    backbone = ResNet((1, 1, 1, 1), width=2)
    for model in (whole, backbone):
        load_imagenet_weights(model, state)
        assert all((tensor == 2).all() for tensor in model.state_dict().values())
    assert not hasattr(backbone, "fc")


def test_a_state_dict_of_another_depth_changes_nothing() -> None:
    torch.manual_seed(0)
    backbone = ResNet((1, 1, 1, 1), width=2)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state = published(ResNet((1, 1, 2, 1), width=2))
    state["conv1.weight"] = torch.zeros(3, 3, 7, 7)
    with pytest.raises(WeightsError, match=r"unexpected: layer3\.1\.conv1\.weight \(8, 32, 1, 1\)") as raised:
        load_imagenet_weights(backbone, state)
    assert "conv1.weight is (3, 3, 7, 7), the model takes (2, 3, 7, 7)" in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(("side", "sides"), [(33, (9, 5, 3, 2)), (64, (16, 8, 4, 2)), (50, (13, 7, 4, 2))])
def test_features_of_all_blocks(side: int, sides: tuple[int, ...]) -> None:
    model = ResNet((1, 2, 3, 2), width=2).eval()
    with torch.no_grad():
        found = model.features(torch.rand(2, 3, side, side), stages=(1, 2, 3, 4))
    assert [[tuple(x.shape) for x in stage] for stage in found] == [
        [(2, channels, size, size)] * depth
        for channels, size, depth in zip((8, 16, 32, 64), sides, (1, 2, 3, 2), strict=True)
    ]
    assert all((x < 0).any() for stage in found for x in stage)


def test_features_are_what_the_next_block_and_the_end_receive_by_relu() -> None:
    torch.manual_seed(0)
    model = ResNet((1, 2, 1, 1), width=2).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        two, three, four = model.features(image)
        again = model.layer2[1](torch.relu(two[0]))
        assert torch.equal(again, two[1])
        assert torch.equal(model.layer3[0](torch.relu(two[1])), three[0])
        assert torch.equal(model(image), torch.relu(four[0]).mean((2, 3)))
        (only,) = model.features(image, stages=(3,))
    assert torch.equal(only[0], three[0])


def test_block_by_hand() -> None:
    """Identity convolutions and batch norms: relu(relu(x)) + x."""
    block = Bottleneck(4, 1, stride=1).eval()
    for convolution in (block.conv1, block.conv2, block.conv3):
        nn.init.zeros_(convolution.weight)
    block.conv1.weight.data[0, 0] = 1
    block.conv2.weight.data[0, 0, 1, 1] = 1
    block.conv3.weight.data[:, 0] = torch.tensor([1.0, 2.0, 0.0, -3.0])[:, None, None]
    for norm in (block.bn1, block.bn2, block.bn3):
        norm.eps = 0.0
    x = torch.tensor([2.0, -1.0, 5.0, 1.0]).reshape(1, 4, 1, 1)
    with torch.no_grad():
        assert block(x).flatten().tolist() == [4.0, 3.0, 5.0, -5.0]


def test_bad_input() -> None:
    model = ResNet((1, 1, 1, 1), width=2)
    for shape in ((3, 33, 33), (1, 17, 33, 33)):
        with pytest.raises(InputError, match=r"image is .*; allowed: \(N, 3, H, W\)"):
            model.features(torch.zeros(shape))
    for stages in ((), (0,), (5,), (3, 2), (2, 2)):
        with pytest.raises(InputError, match="stages are"):
            model.features(torch.zeros(1, 3, 33, 33), stages=stages)
    with pytest.raises(ModelError, match="allowed: four depths of 1 or more"):
        ResNet((3, 4, 6))
    with pytest.raises(ModelError, match="width 0"):
        ResNet(width=0)
