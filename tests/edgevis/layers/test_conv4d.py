"""The centre-pivot 4-D convolution and its group norm against reference values, in all layouts and engines."""

from __future__ import annotations

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from onnx import inliner, shape_inference
from torch import Tensor, nn

from benchmarks.few_shot_segmentation import reference_conv4d
from edgevis.layers import CenterPivotConv4d
from edgevis.layers.grid_norm import GridGroupNorm
from export.onnx import onnx_from_module
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import InputError, ModelError

from locations import GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER
CASES = tuple(f"c{index}" for index in range(9))


def flat(x: Tensor) -> Tensor:
    """(B, C, ha, wa, hb, wb) -> (B, C, Q, S)."""
    return x.flatten(4).flatten(2, 3)


def golden_convolution(case: str) -> tuple[CenterPivotConv4d, GridGroupNorm, dict[str, Tensor]]:
    golden = np.load(GOLDEN / "03_center_pivot_conv4d.npz")
    values = {
        name.removeprefix(f"{case}."): torch.from_numpy(golden[name])
        for name in golden.files
        if name.startswith(f"{case}.")
    }
    inputs, outputs, kernel, stride, padding, groups = (int(value) for value in values["meta"])
    convolution = CenterPivotConv4d(inputs, outputs, kernel, stride)
    assert convolution.query.padding == convolution.support.padding == (padding, padding)
    for ours, theirs in ((convolution.query, "conv1"), (convolution.support, "conv2")):
        ours.load_state_dict({part: values[f"{theirs}.{part}"] for part in ("weight", "bias")})
    norm = GridGroupNorm(groups, outputs)
    norm.load_state_dict({part: values[f"gn.{part}"] for part in ("weight", "bias")})
    return convolution, norm, values


@pytest.mark.parametrize("case", CASES)
def test_reference(case: str) -> None:
    convolution, norm, values = golden_convolution(case)
    with torch.no_grad():
        found = convolution(values["x"])
        assert found.shape == values["y"].shape
        np.testing.assert_allclose(found, values["y"], rtol=0, atol=1e-5)
        block = torch.relu(norm(flat(found).transpose(1, 2))).transpose(1, 2)
    np.testing.assert_allclose(block, flat(values["y_block"]), rtol=0, atol=2e-5)


def naive(convolution: CenterPivotConv4d, x: Tensor) -> Tensor:
    """Place by place: the definition, on kept support places one query map, on query places one support map."""
    stride = convolution.support_stride
    result = torch.zeros(
        *(x.shape[0], convolution.query.out_channels, *x.shape[2:4]),
        *convolution.kept_grid((x.shape[4], x.shape[5])),
        dtype=x.dtype,
    )
    for row in range(result.shape[4]):
        for column in range(result.shape[5]):
            result[..., row, column] += convolution.query(x[..., row * stride, column * stride])
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            result[:, :, row, column] += convolution.support(x[:, :, row, column])
    return result


@pytest.mark.parametrize(
    ("query", "support", "kernel", "stride"),
    [((4, 5), (2, 2), 3, 1), ((17, 16), (2, 2), 3, 1), ((16, 17), (1, 3), 5, 1), ((3, 2), (9, 7), 5, 4)],
)
def test_definition(query: tuple[int, int], support: tuple[int, int], kernel: int, stride: int) -> None:
    """Grids on both sides of where the layout changes; two sizes through one module."""
    torch.manual_seed(0)
    convolution = CenterPivotConv4d(3, 8, kernel, stride).double()
    for batch, height in ((2, support[0]), (1, support[0] + 1)):
        x = torch.randn(batch, 3, *query, height, support[1], dtype=torch.float64)
        with torch.no_grad():
            assert torch.allclose(convolution(x), naive(convolution, x), atol=1e-12)


@pytest.mark.parametrize(("stride", "support"), [(1, (2, 2)), (2, (5, 4)), (4, (9, 9))])
def test_the_benchmark_compares_with_the_same_function(stride: int, support: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution = CenterPivotConv4d(3, 8, 3, stride)
    x = torch.randn(2, 3, 4, 5, *support)
    with torch.no_grad():
        assert torch.allclose(reference_conv4d(convolution)(x), convolution(x), atol=1e-5)


@pytest.mark.parametrize("support", [(1, 1), (2, 2), (3, 2)])
def test_both_layouts_agree(support: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution = CenterPivotConv4d(4, 6, 3, 1).double()
    x = torch.randn(2, 4, 20, support[0] * support[1], dtype=torch.float64)
    by_query = convolution.query_major(x.transpose(1, 2), (5, 4), support).transpose(1, 2)
    by_support = convolution.support_major(x.permute(0, 3, 1, 2), (5, 4), support).permute(0, 2, 3, 1)
    assert torch.allclose(by_query, by_support, atol=1e-12)
    gradients = [
        torch.autograd.grad(y.square().sum(), (convolution.support.weight, convolution.support.bias))
        for y in (by_query, by_support)
    ]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_group_norm_keeps_its_digits_where_a_group_has_a_million_values() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 400, 8, 600) * 0.02 + 0.3 + torch.randn(8)[:, None] * 0.05
    norm = GridGroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = nn.functional.group_norm(x.transpose(1, 2).double(), 4, norm.weight.double(), norm.bias.double())
    for layout in (x, x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)):
        assert (norm(layout).transpose(1, 2) - expected).abs().max() < 2e-5


class Blocks(nn.Module):
    """A squeezing and a mixing block as the models chain them; the grids are constants."""

    def __init__(self) -> None:
        super().__init__()
        self.first = CenterPivotConv4d(3, 8, 5, 4)
        self.norm = GridGroupNorm(4, 8)
        self.second = CenterPivotConv4d(8, 8, 3, 1)

    def run(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first.query_major(x.transpose(1, 2), (6, 5), (7, 8))))
        return self.second.support_major(y.transpose(1, 3), (6, 5), (2, 2))


def test_engines_compute_what_pytorch_does() -> None:
    torch.manual_seed(0)
    module = Blocks().eval()
    graph = Graph(
        "run",
        inputs=(TensorSpec("x", "float32", ("N", 3, 30, 56)),),
        outputs=(TensorSpec("y", "float32", ("N", 4, 8, 30)),),
    )
    model = inliner.inline_local_functions(onnx_from_module(module, graph))
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    assert max(len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info) <= 5
    assert "Einsum" not in {node.op_type for node in model.graph.node}
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in (1, 3):
        x = torch.randn(batch, 3, 30, 56)
        with torch.no_grad():
            expected = module.run(x).numpy()
        for found in (session.run(None, {"x": x.numpy()})[0], compiled([x.numpy()])[0]):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def test_bad_input() -> None:
    convolution = CenterPivotConv4d(3, 4, 3, 2)
    for shape in ((1, 3, 4, 4, 4), (1, 2, 4, 4, 4, 4), (0, 3, 4, 4, 4, 4)):
        with pytest.raises(InputError, match=r"allowed: \(B, 3, ha, wa, hb, wb\)"):
            convolution(torch.zeros(shape))
    with pytest.raises(InputError, match="the support stride is 2"):
        convolution.support_major(torch.zeros(1, 4, 3, 4), (2, 2), (2, 2))
    for sizes in ((0, 4, 3, 1), (3, 4, 2, 1), (3, 4, 3, 0)):
        with pytest.raises(ModelError, match="an odd kernel"):
            CenterPivotConv4d(*sizes)
