"""Residual U-Net and ENet: counts, wiring, options, max-unpooling, and what their exports compute."""

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
from torch.nn import functional

from edgevis import models
from edgevis.layers.max_unpooling import max_pool_with_places, max_unpool
from edgevis.losses import BoxTightnessLoss
from edgevis.models import enet
from edgevis.models._segmentation import SegmentationModel, deployment_of
from edgevis.models.residual_unet import ResidualUNet
from export.onnx import onnx_from_module
from runtime.errors import InputError, ModelError

from built import small_bundle
from locations import GOLDEN_FOLDER
from model_contract import small

# What its fixtures export, one worker exports.
pytestmark = pytest.mark.xdist_group("segmentation")

COUNTS = json.loads((GOLDEN_FOLDER / "param_counts.json").read_text())
NAMES = ("enet", "residual-unet")


def trained_looking(name: str, **options: object) -> SegmentationModel:
    """A model whose batch norms do something."""
    torch.manual_seed(0)
    model = models.create(name, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    assert isinstance(model, SegmentationModel)
    return model


def test_counts() -> None:
    assert models.entry("residual-unet").parameters == COUNTS["residual_unet_1_1_w32"] == 19_644_961
    # The reference holds two convolutions to lower outputs and two slopes that nothing uses.
    unused = (9 * 128 + 1) + (9 * 16 + 1) + 2
    assert models.entry("enet").parameters == COUNTS["enet_1_1_w16"] - unused == 458_230
    for name in NAMES:
        assert models.parameters(models.create(name)) == models.entry(name).parameters


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str) -> None:
    """Logits through the sigmoid and the box-tightness loss reach every parameter; nothing is left over."""
    torch.manual_seed(0)
    model = models.create(name, side=32, classes=2).train()
    loss_of = BoxTightnessLoss((-20, 0, 20))
    loss = loss_of(
        torch.sigmoid(model(torch.randn(2, 1, 32, 32))), torch.tensor([[0, 0, 4, 5, 20, 25], [1, 1, 9, 3, 30, 20]])
    )
    loss.backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The batch norm after a convolution takes its bias away, but for rounding.
    assert not [key for key in silent if not key.endswith("bias")]
    assert all(p.grad is not None for p in model.parameters())


def test_residual_unet_maps() -> None:
    """Channels and sides on the way down, in the bridge and on the way up; the skip is a mean, not a concatenation."""
    model = trained_looking("residual-unet", side=32)
    assert isinstance(model, ResidualUNet)
    shapes: list[tuple[int, ...]] = []
    for unit in (*model.down, model.bridge, *model.enlarge, *model.up):
        unit.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    with torch.inference_mode():
        model(torch.rand(1, 1, 32, 32))
    down = [(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)]
    assert shapes == [*down, (512, 2, 2), *(shape for shape in down[::-1] for _ in range(2))]
    negative = {type(module) for unit in (*model.down, model.bridge) for module in unit.modules()}
    assert nn.LeakyReLU in negative
    assert nn.ReLU not in negative
    assert not [
        module for unit in (*model.enlarge, *model.up) for module in unit.modules() if type(module) is nn.LeakyReLU
    ]


def test_residual_unit_by_hand() -> None:
    model = trained_looking("residual-unet", side=16)
    assert isinstance(model, ResidualUNet)
    unit = model.down[0]
    x = torch.rand(1, 1, 8, 8)
    state = unit.state_dict()

    def convolved(name: str, y: Tensor, *, active: bool) -> Tensor:
        y = functional.conv2d(y, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
        norm = [state[f"{name}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        y = functional.batch_norm(y, *norm)
        return functional.leaky_relu(y, 0.2) if active else y

    first = convolved("first", x, active=True)
    y = convolved("residual.1", convolved("residual.0", first, active=True), active=True)
    expected = convolved("last", first + convolved("residual.2", y, active=False), active=True)
    with torch.inference_mode():
        torch.testing.assert_close(unit(x), expected)


def test_enet_is_what_the_paper_describes() -> None:
    model = models.create("enet")
    found = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    dilations = [m.dilation[0] for m in found if m.dilation[0] > 1]
    assert dilations == [2, 4, 8, 16, 2, 4, 8, 16]
    assert [m.kernel_size for m in found if len(set(m.kernel_size)) > 1] == [(5, 1), (1, 5)] * 4
    assert len([m for m in model.modules() if isinstance(m, nn.PReLU)]) == 111


@pytest.mark.parametrize("name", NAMES)
def test_options(name: str) -> None:
    model = models.create(name, in_channels=3, classes=4, side=48)
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 48, 48)).shape == (2, 4, 48, 48)
    deployment = models.deployment_of(models.entry(name), model)
    (graph,) = deployment.graphs
    assert graph.inputs[0].shape == ("N", 3, 48, 48)
    assert graph.outputs[0].shape == ("N", 4, 48, 48)
    assert deployment.preprocess.color == "RGB"
    assert deployment.preprocess.input == graph.inputs[0]
    assert deployment.postprocess["labels"] == ["class-1", "class-2", "class-3", "class-4"]
    default = models.deployment_of(models.entry(name), models.create(name))
    assert default == models.entry(name).deployment
    assert default.preprocess.input == default.graphs[0].inputs[0]
    assert default.preprocess.color == "GRAY"
    assert default.postprocess == {"labels": ["object"], "threshold": 0.5}


@pytest.mark.parametrize(("name", "multiple"), [("enet", 8), ("residual-unet", 16)])
def test_bad_options(name: str, multiple: int) -> None:
    for options, message in (
        ({"in_channels": 2}, "in_channels is 2; allowed: 1 for grey images, 3 for RGB"),
        ({"classes": 0}, "classes is 0; allowed: a whole number from 1 to 1000"),
        ({"side": 100}, f"side is 100; allowed: multiples of {multiple} from {multiple} to 8192"),
        ({"side": 0}, "side is 0"),
        ({"side": 16384}, "side is 16384"),
        ({"width": 8}, "no option 'width'; its options: in_channels, classes, side"),
    ):
        with pytest.raises(ModelError, match=message):
            models.create(name, **options)
    model = models.create(name)
    for shape in ((1, 3, 32, 32), (1, 1, 32, 36), (1, 32, 32)):
        with pytest.raises(InputError, match=rf"takes \(N, 1, H, W\), H and W multiples of {multiple}"):
            model(torch.rand(shape))
    with pytest.raises(ModelError, match="a Linear is no model of the task 'segment'"):
        deployment_of(nn.Linear(1, 1))


def _by_torch(x: Tensor) -> tuple[Tensor, Tensor]:
    highest, indices = functional.max_pool2d(x, 2, return_indices=True)
    return highest, indices


@pytest.mark.parametrize("values", ["ties", "distinct"])
def test_unpooling_equals_pytorchs(values: str) -> None:
    random = torch.Generator().manual_seed(0)
    shape = (2, 3, 8, 12)
    x = torch.randn(shape, generator=random)
    if values == "ties":
        x = torch.randint(-1, 2, shape, generator=random).float()
    x.requires_grad_()
    y = torch.randn(2, 3, 4, 6, generator=random, requires_grad=True)
    upstream = torch.randn(shape, generator=random)
    found, places = max_pool_with_places(x)
    expected, indices = _by_torch(x)
    assert torch.equal(found, expected)
    assert torch.equal(torch.stack(places).sum(0), torch.ones_like(found, dtype=torch.int64))
    unpooled, wanted = max_unpool(y, places), functional.max_unpool2d(y, indices, 2)
    assert torch.equal(unpooled, wanted)
    for one, other, leaf in ((unpooled, wanted, y), (found.square(), expected.square(), x)):
        weight = upstream if one.shape == upstream.shape else upstream[:, :, ::2, ::2]
        gradients = [torch.autograd.grad((output * weight).sum(), leaf)[0] for output in (one, other)]
        assert torch.equal(*gradients)


def test_nearly_equal_pixels_count_as_equal_within_the_tolerance() -> None:
    x = torch.tensor([[1.0, 1.001], [1.002, 0.0]])[None, None]
    for tolerance, place in ((0.0, 2), (0.0007, 1), (0.01, 0)):
        highest, places = max_pool_with_places(x, tolerance=tolerance)
        assert float(highest) == pytest.approx(1.002)
        assert [bool(mask) for mask in places] == [index == place for index in range(4)]
    assert bool(max_pool_with_places(torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]]), tolerance=0.1)[1][3])


def test_enet_with_pytorchs_unpooling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tolerance the network is the one that PyTorch's own pooling indices make."""
    model = trained_looking("enet", side=32)
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(enet, "_TOLERANCE", 0.0)
    with torch.inference_mode():
        ours = model(image)
        monkeypatch.setattr(enet, "max_pool_with_places", lambda x, tolerance: _by_torch(x))
        monkeypatch.setattr(enet, "max_unpool", lambda x, indices: functional.max_unpool2d(x, indices, 2))
        assert torch.equal(ours, model(image))


def test_flat_parts_of_an_image_do_not_hang_on_rounding() -> None:
    """The same image computed in float64, where convolutions round otherwise: a drawing on black ground."""
    model = trained_looking("enet", side=64)
    image = torch.full((1, 1, 64, 64), -2.0)
    image[:, :, 20:44, 24:40] = 0.4
    image[:, :, 30:38, 30:34] = 1.0
    with torch.inference_mode():
        single = model(image)
        double = model.double()(image.double())
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4 * float(double.abs().max()))


@pytest.fixture(scope="module", params=NAMES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SegmentationModel, ModelProto]:
    if models.shipped_weights(request.param) is not None:  # trained: the contract tests have the same bundle
        model, _ = small(request.param)
        assert isinstance(model, SegmentationModel)
        return model, onnx.load(small_bundle(tmp_path_factory, request.param) / "graphs" / "segment.onnx")
    model = trained_looking(request.param, side=32)
    (graph,) = deployment_of(model).graphs
    return model, onnx_from_module(model, graph)


def test_exports_have_only_operators_that_every_runtime_has(
    exported: tuple[SegmentationModel, ModelProto],
) -> None:
    _, model = exported
    found = {node.op_type for node in model.graph.node}
    assert not found & {"MaxUnpool", "ScatterND", "ScatterElements", "GatherND", "Einsum", "Shape", "If", "Loop"}
    assert all(len(node.output) == 1 for node in model.graph.node if node.op_type == "MaxPool")
    inferred = onnx.shape_inference.infer_shapes(model)
    assert max(len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info) <= 5


@pytest.mark.parametrize("batch", [1, 3])
def test_exports_compute_the_same(exported: tuple[SegmentationModel, ModelProto], batch: int) -> None:
    module, model = exported
    shape = (batch, module.in_channels, module.side, module.side)
    image = np.random.default_rng(batch).normal(size=shape).astype(np.float32)
    image[:, :, :, 20:] = -2.0
    with torch.inference_mode():
        expected = module.segment(torch.from_numpy(image)).numpy()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    core = openvino.Core()
    network = core.read_model(inline_local_functions(model).SerializeToString())
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for found in (session.run(None, {"image": image})[0], compiled({"image": image})[0]):
        assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4
