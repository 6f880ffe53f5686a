"""Group norm: PyTorch's results, also where a group is large and in the engines."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import inliner
from torch import Tensor, nn

from edgevis.layers.group_norm import GroupNorm
from edgevis.ops import group_norm
from export.onnx import onnx_from_module
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import InputError

from bundles import needs_openvino

pytestmark = pytest.mark.torch

CHANNELS, QUERIES, SUPPORTS = 8, 1024, 512
GRAPH = Graph(
    "norm",
    (TensorSpec("x", "float32", ("N", CHANNELS, QUERIES, SUPPORTS)),),
    (TensorSpec("y", "float32", ("N", CHANNELS, QUERIES, SUPPORTS)),),
)


class Ours(nn.Module):
    def __init__(self, kind: type[nn.GroupNorm] = GroupNorm) -> None:
        super().__init__()
        self.module = kind(2, CHANNELS)
        with torch.no_grad():
            self.module.weight.copy_(torch.linspace(0.5, 1.5, CHANNELS))
            self.module.bias.copy_(torch.linspace(-1.0, 1.0, CHANNELS))

    def norm(self, x: Tensor) -> Tensor:
        result: Tensor = self.module(x)
        return result


@pytest.fixture(scope="module")
def x() -> Tensor:
    """As after a ReLU: the mean is larger than the spread, 2 million values to a group."""
    return torch.relu(torch.randn(2, CHANNELS, QUERIES, SUPPORTS, generator=torch.Generator().manual_seed(0))) + 1


def exact(x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return Ours(nn.GroupNorm).double().norm(x.double()).numpy()


def test_layer_is_pytorchs(x: Tensor) -> None:
    with torch.no_grad():
        np.testing.assert_allclose(Ours().norm(x).numpy(), exact(x), atol=1e-5)
    assert Ours().state_dict().keys() == Ours(nn.GroupNorm).state_dict().keys()


@needs_openvino
def test_engines_keep_the_precision(x: Tensor) -> None:
    """PyTorch's own export does not: the last lines show that this test can fail."""
    import openvino

    def errors(model: nn.Module) -> list[float]:
        made = onnx_from_module(model, GRAPH)
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        core = openvino.Core()
        read = core.read_model(inliner.inline_local_functions(made).SerializeToString())
        compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = (session.run(None, {"x": x.numpy()})[0], compiled(x.numpy())[0])
        return [float(np.abs(array - exact(x)).max()) for array in found]

    assert max(errors(Ours())) < 5e-5
    assert min(errors(Ours(nn.GroupNorm))) > 5e-4


def test_one_node_with_its_definition() -> None:
    made = onnx_from_module(Ours(), GRAPH)
    assert [(node.domain, node.op_type) for node in made.graph.node] == [("edgevis", "GroupNorm")]
    assert [function.name for function in made.functions] == ["GroupNorm"]


@pytest.mark.parametrize(
    ("shape", "channels", "groups"),
    [((2, 8, 4), 8, 2), ((2, 8, 4, 4), 6, 2), ((2, 8, 4, 4), 8, 3), ((2, 8, 4, 4), 8, 0)],
)
def test_wrong_shapes(shape: tuple[int, ...], channels: int, groups: int) -> None:
    with pytest.raises(InputError, match=r"allowed: .* a divisor of C"):
        group_norm(torch.zeros(shape), torch.ones(channels), torch.zeros(channels), groups)
