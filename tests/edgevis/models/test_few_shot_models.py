"""ResNet-12 and AFL-Net: counts, names, wiring, what is trained, and what their exports compute."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx import ModelProto
from onnx.inliner import inline_local_functions
from torch import Tensor, nn

from edgevis import models
from edgevis.layers import CrossAttention, ResNet12
from edgevis.layers.resnet12 import ResNet12Block
from edgevis.losses import AttentionFusionLoss
from edgevis.models.afl_net import AFLNet
from edgevis.models.resnet12 import FewShotResNet12
from export.onnx import onnx_from_module
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import InputError, ModelError

from locations import GOLDEN_FOLDER

# What its fixtures export, one worker exports.
pytestmark = pytest.mark.xdist_group("few-shot")

GOLDEN = GOLDEN_FOLDER
COUNTS = json.loads((GOLDEN / "param_counts.json").read_text())
SMALL = (16, 16, 32, 48)
ATTENTION_CASES = ("c64_s001", "c256_s01", "c32_s02")


def small_net(*, attention: bool = True) -> AFLNet:
    """AFL-Net with few channels and batch norms that do something."""
    torch.manual_seed(0)
    model = AFLNet(num_classes=6, attention=attention, channels=SMALL)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


def test_counts_of_resnet12() -> None:
    assert models.parameters(ResNet12()) == COUNTS["resnet12_64_128_256_512"] == 7_996_800
    assert models.parameters(ResNet12(channels=(64, 160, 320, 640))) == COUNTS["resnet12_wide_64_160_320_640"]
    model = ResNet12()
    blocks = [model.layer1, model.layer2, model.layer3, model.layer4]
    assert [models.parameters(block) for block in blocks] == COUNTS["resnet12_blocks"]


def test_counts_of_afl_net() -> None:
    assert models.entry("afl-net").parameters == COUNTS["two_branch_R1"] == 18_729_792
    assert models.entry("afl-net-no-attention").parameters == COUNTS["two_branch_R1_without_attention"]
    assert models.parameters(CrossAttention(256)) == COUNTS["cross_attention_c256"]
    assert models.parameters(CrossAttention(512)) == COUNTS["cross_attention_c512"]
    model = models.create("afl-net")
    assert isinstance(model, AFLNet)
    for stem in (model.global_stem, model.local_stem):
        assert models.parameters(stem) == sum(COUNTS["resnet12_blocks"][:3])
    assert models.parameters(model.global_layer4) == models.parameters(model.local_layer4) == 7_344_128
    assert models.parameters(model.classifier) == 512 * 64 + 64


@pytest.mark.parametrize("name", ["resnet12", "afl-net", "afl-net-no-attention"])
def test_the_classifier_is_what_the_entry_says(name: str) -> None:
    """Its prefix is the only thing that changes with the number of classes."""
    entry = models.entry(name)
    few, many = (
        {key: value.shape for key, value in models.create(name, num_classes=n).state_dict().items()} for n in (3, 5)
    )
    assert few.keys() == many.keys()
    changed = {key for key in few if few[key] != many[key]}
    assert changed == {f"{prefix}{kind}" for prefix in entry.classifier for kind in ("weight", "bias")}


def test_resnet12_bears_published_names() -> None:
    """A name and shape from each kind of layer of Meta-Baseline's resnet12."""
    state = models.create("resnet12").state_dict()
    expected = {
        "layer1.conv1.weight": (64, 3, 3, 3),
        "layer1.downsample.0.weight": (64, 3, 1, 1),
        "layer2.bn1.running_mean": (128,),
        "layer3.conv3.weight": (256, 256, 3, 3),
        "layer4.downsample.1.weight": (512,),
        "layer4.bn3.bias": (512,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert len([name for name in state if not name.endswith("num_batches_tracked")]) == 4 * 4 * 5


def test_resnet12_starts_with_kaimings_variance() -> None:
    """2 over the fan-out, 9 outputs * channels for a 3x3 convolution, whatever its inputs are."""
    torch.manual_seed(0)
    block = ResNet12Block(64, 256)
    for convolution, fan_out in ((block.conv1, 9 * 256), (block.downsample[0], 256)):
        found = float(convolution.weight.detach().std())  # type: ignore[union-attr,operator]
        assert found == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)


def test_resnet12_maps_and_embedding() -> None:
    """84 -> 42 -> 21 -> 10 -> 5, and the embedding is the mean of the last map."""
    model = models.create("resnet12")
    assert isinstance(model, FewShotResNet12)
    x = torch.rand(2, 3, 84, 84)
    with torch.inference_mode():
        embedding = model.encode(x)
        sides = []
        for block in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = block(x)
            sides.append(x.shape[2:])
    assert sides == [(42, 42), (21, 21), (10, 10), (5, 5)]
    torch.testing.assert_close(embedding, x.mean((2, 3)))
    assert embedding.shape == (2, 512)


def test_resnet12_block_by_hand() -> None:
    """One channel, 1x1 taps: leaky ReLU 0.1 after the 1st, 2nd and the sum, and the shortcut is projected."""
    block = ResNet12Block(1, 1).eval()
    for convolution, tap in ((block.conv1, -1.0), (block.conv2, 2.0), (block.conv3, 1.0)):
        nn.init.zeros_(convolution.weight)
        convolution.weight.data[0, 0, 1, 1] = tap
    nn.init.constant_(block.downsample[0].weight, -3.0)  # type: ignore[arg-type]
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    with torch.inference_mode():
        found = block(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2))
    # x = 1: -1 -> -0.1 -> -0.2 -> -0.02; minus 3 is -3.02 -> -0.302, the largest of the four.
    torch.testing.assert_close(found, torch.full((1, 1, 1, 1), -0.302))


def test_resnet12_forward_gives_logits_only_with_a_classifier() -> None:
    image = torch.rand(1, 3, 84, 84)
    plain, classifying = models.create("resnet12"), models.create("resnet12", num_classes=7)
    with torch.inference_mode():
        assert torch.equal(plain(image), plain.encode(image))
        logits = classifying(image)
        assert torch.equal(classifying.classifier(classifying.encode(image)), logits)  # type: ignore[operator]
    assert logits.shape == (1, 7)
    with pytest.raises(ModelError, match=r"num_classes is -1; allowed: 0 \(no classifier\) or more"):
        models.create("resnet12", num_classes=-1)


@pytest.mark.parametrize("case", ATTENTION_CASES)
def test_cross_attention(case: str) -> None:
    golden = np.load(GOLDEN / "channel_cross_attention.npz")
    assert set(golden["names"]) == set(ATTENTION_CASES)
    reduce, expand = (torch.from_numpy(golden[f"{case}/{name}"]).double() for name in ("W1", "W2"))
    source, target = (
        torch.from_numpy(golden[f"{case}/{name}"]).double().requires_grad_() for name in ("X_source", "X_target")
    )
    layer = CrossAttention(source.shape[1], negative_slope=float(golden[f"{case}/leaky_slope"])).double()
    layer.load_state_dict({"reduce.weight": reduce, "expand.weight": expand})
    out = layer(source, target)
    (out * torch.from_numpy(golden[f"{case}/upstream"])).sum().backward()
    literal = layer(target, target)
    gate = layer(torch.ones_like(source), target)[:, :, 0, 0]
    assert source.grad is not None
    assert target.grad is not None
    for found, name in (
        (out, "out_cross"),
        (literal, "out_literal_eq3"),
        (gate, "z"),
        (source.grad, "grad_source_cross"),
        (target.grad, "grad_target_cross"),
    ):
        expected = golden[f"{case}/{name}"]
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_cross_attention_refuses_what_it_cannot_do() -> None:
    for channels, reduction in ((24, 16), (8, 16), (32, 0)):
        with pytest.raises(ModelError, match=f"of {channels} channels reduced by {reduction}"):
            CrossAttention(channels, reduction=reduction)
    with pytest.raises(InputError, match="source is"):
        CrossAttention(32)(torch.rand(1, 32, 2, 2), torch.rand(1, 16, 2, 2))


def gated(source: Tensor, target: Tensor, layer: CrossAttention) -> Tensor:
    """Equations 1 and 2 of the target, times the source."""
    hidden = nn.functional.leaky_relu(target.mean((2, 3)) @ layer.reduce.weight.T, 0.01)
    return torch.sigmoid(hidden @ layer.expand.weight.T)[:, :, None, None] * source


@pytest.mark.parametrize("attention", [True, False])
def test_afl_net_is_wired_as_its_figure(attention: bool) -> None:
    """Gates after blocks 3 and 4; both block 4s take both maps; the embedding is global, then local."""
    model = small_net(attention=attention)
    image = torch.rand(2, 3, 84, 84)
    with torch.inference_mode():
        g, s = model.global_stem(image), model.local_stem(image)
        if model.gates3 is not None:
            g, s = gated(g, s, model.gates3.to_global), gated(s, g, model.gates3.to_local)
        assert g.shape == (2, 32, 10, 10)
        joined = torch.cat((g, s), 1)
        g, s = model.global_layer4(joined), model.local_layer4(joined)
        if model.gates4 is not None:
            g, s = gated(g, s, model.gates4.to_global), gated(s, g, model.gates4.to_local)
        assert g.shape == (2, 48, 5, 5)
        found = model(image)
        torch.testing.assert_close(found.global_embedding, g.mean((2, 3)))
        torch.testing.assert_close(found.local_embedding, s.mean((2, 3)))
        assert torch.equal(found.embedding, torch.cat(found[:2], 1))
        assert torch.equal(found.embedding, model.encode(image))
        assert torch.equal(found.global_logits, model.classifier(found.global_embedding))
    assert (model.gates3 is None) == (model.gates4 is None) == (not attention)


def test_afl_net_trains_through_every_parameter() -> None:
    """Its loss reaches all parameters, its own scale among them, and a few steps of the paper's optimiser lower it."""
    torch.manual_seed(1)
    model = small_net().train()
    criterion = AttentionFusionLoss()
    images = torch.rand(2 * 3 * 3, 3, 32, 32)
    labels = torch.tensor([0, 1, 2, 3, 4, 5]).repeat_interleave(3)
    optimiser = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.02, momentum=0.9)
    losses = []
    for _ in range(6):
        found = model(images)
        loss = criterion(found.global_logits, found.local_embedding, found.embedding, labels, way=3, shot=1, query=2)
        optimiser.zero_grad()
        loss.backward()
        without = [name for name, p in (*model.named_parameters(), *criterion.named_parameters()) if p.grad is None]
        assert not without
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_afl_net_refuses_no_classes() -> None:
    for name in ("afl-net", "afl-net-no-attention"):
        with pytest.raises(ModelError, match="num_classes is 0; allowed: 1 or more"):
            models.create(name, num_classes=0)
    with pytest.raises(ModelError, match="of 40 channels"):
        AFLNet(num_classes=2, attention=True, channels=(8, 8, 40, 48))


SMALL_GRAPH = Graph(
    "encode",
    inputs=(TensorSpec("image", "float32", ("N", 3, 84, 84)),),
    outputs=(TensorSpec("embedding", "float32", ("N", 2 * SMALL[3])),),
)


@pytest.fixture(scope="module")
def exported() -> ModelProto:
    return onnx_from_module(small_net(), SMALL_GRAPH)


def test_the_export_keeps_the_four_gates(exported: ModelProto) -> None:
    nodes = [node for node in exported.graph.node if node.domain == "edgevis"]
    assert [node.op_type for node in nodes] == ["CrossAttention"] * 4
    assert [(function.domain, function.name) for function in exported.functions] == [("edgevis", "CrossAttention")]
    weights = {item.name: list(item.dims) for item in exported.graph.initializer}
    shapes = [[weights[name] for name in node.input[2:]] for node in nodes]
    assert shapes == [[[2, 32], [32, 2]]] * 2 + [[[3, 48], [48, 3]]] * 2
    assert {node.op_type for node in exported.graph.node}.isdisjoint({"BatchNormalization", "Einsum", "Shape"})


@pytest.mark.parametrize("batch", [1, 3])
def test_engines_compute_what_pytorch_does(exported: ModelProto, batch: int) -> None:
    torch.manual_seed(batch)
    image = torch.rand(batch, 3, 84, 84)
    with torch.inference_mode():
        expected = small_net().encode(image).numpy()
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    (by_onnxruntime,) = session.run(None, {"image": image.numpy()})
    core = openvino.Core()
    inlined = core.read_model(inline_local_functions(exported).SerializeToString())
    compiled = core.compile_model(inlined, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    by_openvino = compiled([image.numpy()])[0]
    for found in (by_onnxruntime, by_openvino):
        # Float32 in other orders of summation, batch norms folded.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))


def test_what_openvino_is_given_has_no_own_nodes(exported: ModelProto) -> None:
    inlined = inline_local_functions(exported)
    onnx.checker.check_model(inlined, full_check=True)
    assert {node.domain for node in inlined.graph.node} == {""}
