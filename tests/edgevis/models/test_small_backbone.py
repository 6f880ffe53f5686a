"""HSNet on small backbones: maps of three scales, the published weights, the same numbers in both engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from onnx import inliner
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from edgevis import models
from edgevis.layers.efficientnet import EfficientNetB0, EfficientNetLite0Backbone
from edgevis.layers.mbconv import SameConv2d
from edgevis.layers.mobilenetv2 import MobileNetV2Backbone
from edgevis.models.mobilenetv2 import MobileNetV2
from edgevis.training.warm_start import load_backbone
from export.onnx import onnx_from_module
from runtime.errors import InputError, ModelError, WeightsError

from shared_data import shared_data

pytestmark = pytest.mark.torch

SIDE = 97


@pytest.mark.parametrize(
    ("network", "channels"),
    [(MobileNetV2Backbone, (32, 96, 160)), (EfficientNetLite0Backbone, (40, 112, 192))],
)
def test_maps_of_three_scales(
    network: type[MobileNetV2Backbone | EfficientNetLite0Backbone], channels: tuple[int, ...]
) -> None:
    backbone = network().eval()
    with torch.no_grad():
        two, three, four = backbone.features(torch.rand(2, 3, SIDE, SIDE))
    assert [tuple(maps[-1].shape) for maps in (two, three, four)] == [
        (2, count, side, side) for count, side in zip(channels, (13, 7, 4), strict=True)
    ]
    assert backbone.channels[1:] == channels
    assert (len(two), len(three), len(four)) == backbone.depths[1:]
    with pytest.raises(InputError, match="allowed: "):
        backbone.features(torch.rand(3, SIDE, SIDE))


def test_its_padding_is_the_classifiers() -> None:
    """TensorFlow pads an odd side by one pixel at both ends, an even one, as the classifier's, only at the last."""
    whole = models.create("mobilenetv2")
    assert isinstance(whole, MobileNetV2)
    backbone = MobileNetV2Backbone().eval()
    own = backbone.state_dict()
    backbone.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in own})
    image = torch.rand(1, 3, 33, 33)
    with torch.no_grad():
        found = backbone.act1(backbone.bn1(backbone.conv_stem(image)))
        even = functional.pad(image, (1, 0, 1, 0))
        torch.testing.assert_close(found, whole.act1(whole.bn1(whole.conv_stem(even))))


def test_lite0_is_the_published_trunk_on_odd_sides() -> None:
    """The classifier's padding puts nothing before an odd side and too much behind it; here both ends get the same."""
    whole = EfficientNetB0(num_classes=0, lite=True, tensorflow=True).eval()
    backbone = EfficientNetLite0Backbone().eval()
    own = backbone.state_dict()
    backbone.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in own})
    assert {module.eps for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}
    image = torch.rand(1, 3, 33, 33) * 2 - 1
    with torch.no_grad():
        found = backbone.features(image, stages=(1,))[0][-1]
        for module in whole.modules():
            if isinstance(module, SameConv2d) and module.stride == (2, 2):
                half = (module.kernel_size[0] - 1) // 2
                module.pad = nn.ZeroPad2d(half)
        torch.testing.assert_close(found, whole.blocks[:2](whole.stem(image)))


@pytest.mark.parametrize(("backbone", "mean"), [("mobilenetv2", 0.5), ("efficientnet-lite0", 127 / 255)])
def test_the_images_are_as_the_published_weights_saw_them(backbone: str, mean: float) -> None:
    model = models.create("hsnet-hm", backbone=backbone, side=SIDE)
    spec = models.deployment_of(models.entry("hsnet-hm"), model).preprocess
    assert (spec.mean, spec.color, spec.scale) == ((mean,) * 3, "RGB", 1 / 255)


def test_engines_compute_what_pytorch_does() -> None:
    model = models.create("hsnet-hm", backbone="efficientnet-lite0", side=SIDE)
    deployment = models.deployment_of(models.entry("hsnet-hm"), model)
    image, mask = torch.rand(2, 3, SIDE, SIDE) * 2 - 1, (torch.rand(2, SIDE, SIDE) > 0.5).float()
    with torch.no_grad():
        supports = model.support(image, mask)  # type: ignore[operator]
        expected = model.query(image, *supports)  # type: ignore[operator]
    # The contract tests export the graph `support` with the other backbone.
    (query_graph,) = (graph for graph in deployment.graphs if graph.name == "query")
    onnx = inliner.inline_local_functions(onnx_from_module(model, query_graph)).SerializeToString()
    feeds = {"image": image.numpy(), "support_l4": supports[0], "support_l3": supports[1], "support_l2": supports[2]}
    query = {name: np.asarray(value) for name, value in feeds.items()}
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(onnx), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for found in (session.run(None, query)[0], compiled(query)[0]):
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_what_cannot_have_it() -> None:
    with pytest.raises(ModelError, match="backbone is 'mobilenetv2'; allowed: resnet50, resnet101"):
        models.create("vat-hm", backbone="mobilenetv2")
    with pytest.raises(InputError, match="has no backbone"):
        load_backbone(models.create("enet"), Path("any.safetensors"))


@pytest.mark.parametrize(
    ("backbone", "file"),
    [
        ("mobilenetv2", "mobilenetv2_100.tf2_ptq_in1k.safetensors"),
        ("efficientnet-lite0", "efficientnet_lite0_in1k.safetensors"),
    ],
)
def test_published_weights_begin_a_training(backbone: str, file: str, tmp_path: Path) -> None:
    path = shared_data("weights", file)
    model = models.create("hsnet-hm", backbone=backbone, side=SIDE)
    load_backbone(model, path)
    published = load_file(path)
    assert all(
        torch.equal(tensor, published[name])
        for name, tensor in model.backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )  # type: ignore[union-attr]
    with pytest.raises(WeightsError, match="missing"):
        load_backbone(models.create("hsnet-hm", side=SIDE), path)
