"""OSNet x0.5 with instance norms: published weights and embeddings, the gates, what takes off a camera's light."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, shape_inference
from safetensors import safe_open
from torch import Tensor, nn

from calibration.quantize.graph import quantize
from edgevis import models
from edgevis.models.osnet import ChannelGate, LinearContextGate, OmniScaleBlock, OSNetIN
from export.autocast import fp16_from_fp32
from export.onnx import onnx_from_module
from runtime.bundle.spec import Graph, TensorSpec
from runtime.images.preprocess import Preprocessor

from shared_data import shared_data

pytestmark = pytest.mark.torch

FOLDER = ("weights", "reid_retail0287")


def osnet_in(**options: object) -> OSNetIN:
    torch.manual_seed(0)
    model = models.create("osnet-in-x0-5", **options)
    assert isinstance(model, OSNetIN)
    return model


@pytest.mark.parametrize("number", ["0267", "0287"])
def test_published_weights_give_the_published_embeddings(number: str) -> None:
    """Six crops of three persons; the reference is OpenVINO in float32 (0287) and another port (0267)."""
    path = shared_data(*FOLDER, f"osnet_in_x0_5_retail{number}.safetensors")
    model = osnet_in()
    models.load_weights(model, path)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    with np.load(shared_data(*FOLDER, "golden.npz")) as golden:
        crops, wanted = list(golden["crops_bgr_uint8"]), golden[f"embedding_{number}"]
    image = torch.from_numpy(Preprocessor(models.entry("osnet-in-x0-5").deployment.preprocess)(crops))
    with torch.inference_mode():
        found = model(image).numpy()
    np.testing.assert_allclose(found, wanted, atol=5e-5)  # float32 in another order of summation; rows have norm 7


def test_the_two_kinds_of_gates_take_turns() -> None:
    gates = [module.gate for module in osnet_in().modules() if isinstance(module, OmniScaleBlock)]
    assert [type(gate) for gate in gates] == 3 * [ChannelGate, LinearContextGate]


def test_a_gate_depends_on_differences_within_a_group_alone() -> None:
    """Group norm over three channels: neither what all three have in common nor their spread opens a gate."""
    torch.manual_seed(0)
    gate = LinearContextGate(48)
    nn.init.normal_(gate.gn.weight)
    nn.init.normal_(gate.gn.bias)
    x = 30 * torch.randn(2, 48, 6, 4)  # the norm's epsilon counts for nothing beside it
    spread = torch.rand(2, 16, 1, 1, 1) + 1
    common = torch.randn(2, 16, 1, 1, 1)
    grouped = x.reshape(2, 16, 3, 6, 4)
    moved = (grouped * spread + common).reshape(2, 48, 6, 4)
    with torch.no_grad():
        torch.testing.assert_close(gate(moved) / moved, gate(x) / x, rtol=1e-3, atol=1e-4)
        reversed_group = grouped.flip(2).reshape(2, 48, 6, 4)
        assert not torch.allclose(gate(reversed_group) / reversed_group, gate(x) / x, atol=1e-2)


class Gated(nn.Module):
    """A gate between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(3, 48, 3), LinearContextGate(48), nn.Conv2d(48, 8, 3)

    def embed(self, image: Tensor) -> Tensor:
        return self.last(self.gate(self.first(image))).mean((2, 3))


def test_a_gate_stays_in_float32_in_float16_and_int8() -> None:
    """From the mean of each channel to the sigmoid; the convolutions around it are rounded."""
    image = TensorSpec("image", "float32", ("N", 3, 16, 8))
    graph = Graph("embed", (image,), (TensorSpec("embedding", "float32", ("N", 8)),))
    torch.manual_seed(0)
    model = onnx_from_module(Gated(), graph)
    feeds = [{"image": torch.randn(2, 3, 16, 8).numpy()}]
    half, quantized = fp16_from_fp32(model, feeds), quantize(model, feeds)
    for rounded in (half, quantized):
        types = types_of(rounded)
        made_by = {name: node for node in rounded.graph.node for name in node.output}
        path = [next(node for node in rounded.graph.node if node.op_type == "Sigmoid")]
        while path[-1].op_type != "ReduceMean":
            path.append(made_by[path[-1].input[0]])
        gate = ["Sigmoid", "Add", "Mul", "Reshape", "InstanceNormalization", "Reshape", "ReduceMean"]
        assert [node.op_type for node in path] == gate
        assert {types[node.output[0]] for node in path} == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 in types_of(half).values()
    assert "QuantizeLinear" in {node.op_type for node in quantized.graph.node}


def types_of(model: ModelProto) -> dict[str, int]:
    """The element type of each inner tensor."""
    inferred = shape_inference.infer_shapes(model).graph.value_info
    return {value.name: value.type.tensor_type.elem_type for value in inferred}


def test_the_light_of_a_camera_is_taken_off() -> None:
    """A gain and an offset for each colour, the same at all places, leave the embedding as it is."""
    model = osnet_in()
    torch.manual_seed(1)
    image = torch.randn(2, 3, 256, 128)
    gain, offset = torch.tensor([0.5, 2.0, 1.5]), torch.tensor([1.0, -1.0, 0.3])

    def lit(x: Tensor) -> Tensor:
        return x * gain[:, None, None] + offset[:, None, None]

    with torch.inference_mode():
        torch.testing.assert_close(model(lit(image)), model(image), rtol=1e-3, atol=1e-3 * float(model(image).std()))
