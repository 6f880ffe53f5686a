"""The operators: reference values, gradients, torch.export and compile, and one ONNX node that every runtime runs."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, inliner
from torch import Tensor, nn

from edgevis.ops import cross_attention, hybrid_mask
from export.onnx import onnx_from_module
from runtime.backends._tensorrt.compiler import build_engine
from runtime.backends._tensorrt.spec import BuildSpec
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import CompileError, InputError

from bundles import needs_openvino
from locations import GOLDEN_FOLDER

pytestmark = pytest.mark.torch

GOLDEN = GOLDEN_FOLDER
MASKING = np.load(GOLDEN / "01_hybrid_mask.npz")
ATTENTION = np.load(GOLDEN / "channel_cross_attention.npz")
CHANNELS, SIDE, IMAGE = 32, 5, 33  # 33 = 32 + 1: the mask is sampled at whole pixels


class Both(nn.Module):
    """Both operators in one graph."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.reduce = nn.Parameter(torch.randn(2, CHANNELS, generator=random))
        self.expand = nn.Parameter(torch.randn(CHANNELS, 2, generator=random))

    def run(self, feature: Tensor, masked: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        kept = hybrid_mask(feature, masked, mask)
        return kept, cross_attention(kept, masked, self.reduce, self.expand, 0.2)

    forward = run


MAP = ("N", CHANNELS, SIDE, SIDE)
GRAPH = Graph(
    "run",
    (
        TensorSpec("feature", "float32", MAP),
        TensorSpec("masked", "float32", MAP),
        TensorSpec("mask", "float32", ("N", IMAGE, IMAGE)),
    ),
    (TensorSpec("kept", "float32", MAP), TensorSpec("gated", "float32", MAP)),
)


def inputs(batch: int = 3, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    feature, masked = (torch.randn(batch, CHANNELS, SIDE, SIDE, generator=random) for _ in range(2))
    return feature, masked, (torch.rand(batch, IMAGE, IMAGE, generator=random) > 0.5).float()


@pytest.fixture(scope="module")
def model() -> Both:
    return Both().eval()


@pytest.fixture(scope="module")
def exported(model: Both) -> ModelProto:
    return onnx_from_module(model, GRAPH)


@pytest.mark.parametrize("case", [f"c{index}" for index in range(12)])
def test_hybrid_mask_reference(case: str) -> None:
    arrays = {key: torch.from_numpy(MASKING[f"{case}.{key}"]) for key in ("mask", "feat", "feat_im", "fm", "hm")}
    stable = MASKING[f"{case}.stable"]
    found = hybrid_mask(arrays["feat"], arrays["feat_im"], arrays["mask"]).numpy()
    np.testing.assert_allclose(found[stable], arrays["hm"].numpy()[stable], atol=2e-4)
    either = np.minimum(abs(found - arrays["fm"].numpy()), abs(found - arrays["feat_im"].numpy()))
    assert either[~stable].max(initial=0) <= 2e-4


def test_every_reference_case_is_run() -> None:
    assert {name.split(".")[0] for name in MASKING} == {f"c{index}" for index in range(12)}


@pytest.mark.parametrize("case", [str(name) for name in ATTENTION["names"]])
def test_cross_attention_reference(case: str) -> None:
    arrays = {
        key.split("/")[1]: torch.from_numpy(np.asarray(ATTENTION[key])).double()
        for key in ATTENTION
        if key.startswith(f"{case}/")
    }
    source, target = arrays["X_source"].requires_grad_(), arrays["X_target"].requires_grad_()
    found = cross_attention(source, target, arrays["W1"], arrays["W2"], float(arrays["leaky_slope"]))
    (found * arrays["upstream"]).sum().backward()
    for actual, wanted in (
        (found.detach(), arrays["out_cross"]),
        (source.grad, arrays["grad_source_cross"]),
        (target.grad, arrays["grad_target_cross"]),
    ):
        assert actual is not None
        assert float((actual - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    literal = arrays["out_literal_eq3"]
    assert float((found.detach() - literal).abs().max()) > 1e-2 * float(literal.abs().max()), "the text's reading"


def test_gradients_are_those_of_finite_differences() -> None:
    random = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()

    attended = (draw(2, 16, 3, 2), draw(2, 16, 4, 3), draw(3, 16), draw(16, 3))
    assert torch.autograd.gradcheck(lambda *tensors: cross_attention(*tensors, 0.1), attended)  # type: ignore[call-arg]
    mask = (torch.rand((2, 33, 33), generator=random) > 0.4).double()
    assert torch.autograd.gradcheck(lambda *maps: hybrid_mask(*maps, mask), (draw(2, 3, 5, 5), draw(2, 3, 5, 5)))  # type: ignore[call-arg]


def test_operators_are_sound_for_pytorch(model: Both) -> None:
    """Shape functions, aliasing and autograd registration, by PyTorch's own check."""
    feature, masked, mask = inputs()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.edgevis.hybrid_mask.default, (feature, masked, mask), test_utils=checks)
    arguments = (feature, masked, model.reduce.detach(), model.expand.detach(), 0.2)
    torch.library.opcheck(torch.ops.edgevis.cross_attention.default, arguments, test_utils=checks)


def test_torch_export_and_compile(model: Both) -> None:
    wanted = model(*inputs())
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, inputs(2), dynamic_shapes=tuple({0: batch} for _ in range(3)))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "edgevis.hybrid_mask.default" in targets
    assert "edgevis.cross_attention.default" in targets
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for found in (program.module()(*inputs()), compiled(*inputs())):
        for actual, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(actual, expected)


def test_onnx_has_one_node_each_and_its_definition(exported: ModelProto) -> None:
    assert [(node.domain, node.op_type) for node in exported.graph.node] == [
        ("edgevis", "HybridMask"),
        ("edgevis", "CrossAttention"),
    ]
    assert {function.name for function in exported.functions} == {"HybridMask", "CrossAttention"}
    assert {(item.domain, item.version) for item in exported.opset_import} == {("", 18), ("edgevis", 1)}
    slopes = [item.f for item in exported.graph.node[1].attribute if item.name == "negative_slope"]
    assert slopes == [pytest.approx(0.2)]


@needs_openvino
def test_runtimes_agree_with_pytorch_to_the_last_decision(model: Both, exported: ModelProto) -> None:
    import openvino

    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    flat = inliner.inline_local_functions(exported)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model=flat.SerializeToString(), weights=b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for batch in (1, 4):
        tensors = inputs(batch, seed=batch)
        wanted = [tensor.detach().numpy() for tensor in model(*tensors)]
        feeds = {spec.name: tensor.numpy() for spec, tensor in zip(GRAPH.inputs, tensors, strict=True)}
        by_openvino = compiled(feeds, share_inputs=False)
        for found in (session.run(None, feeds), [by_openvino[index] for index in range(2)]):
            np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)  # one flipped element would be off by about 1
            np.testing.assert_allclose(found[1], wanted[1], atol=1e-5)


def test_tensorrt_reads_the_nodes(exported: ModelProto) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for x86-64 only")
    shapes = {
        spec.name: tuple(tuple(batch if size == "N" else int(size) for size in spec.shape) for batch in (1, 2, 8))
        for spec in GRAPH.inputs
    }
    spec = BuildSpec(shapes, compute_capabilities=("SM86",))
    assert len(build_engine(exported.SerializeToString(), spec, flavour="tensorrt_rtx").plan) > 1000
    broken = ModelProto.FromString(exported.SerializeToString())
    del broken.functions[:]
    with pytest.raises(CompileError, match="HybridMask"):
        build_engine(broken.SerializeToString(), spec, flavour="tensorrt_rtx")


def test_not_a_number_is_not_greater_than_zero() -> None:
    feature, masked, mask = inputs()
    feature[:] = float("nan")
    torch.testing.assert_close(hybrid_mask(feature, masked, mask), masked)


MAPS = torch.zeros(2, 4, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MAPS, MAPS[:, :3], torch.zeros(2, 9, 9)), "both \\(B, C, h, w\\)"),
        ((MAPS[0], MAPS[0], torch.zeros(2, 9, 9)), "both \\(B, C, h, w\\)"),
        ((MAPS, MAPS, torch.zeros(2, 1, 9, 9)), "allowed: \\(B, H, W\\) with B = 2"),
        ((MAPS, MAPS, torch.zeros(3, 9, 9)), "allowed: \\(B, H, W\\) with B = 2"),
        ((MAPS.long(), MAPS.long(), torch.zeros(2, 9, 9)), "one floating-point dtype"),
        ((MAPS, MAPS.double(), torch.zeros(2, 9, 9)), "one floating-point dtype"),
    ],
)
def test_hybrid_mask_refuses(arguments: tuple[Tensor, Tensor, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hybrid_mask(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MAPS, MAPS[:1], torch.zeros(1, 4), torch.zeros(4, 1)), "with one B and C"),
        ((MAPS, MAPS[0], torch.zeros(1, 4), torch.zeros(4, 1)), "with one B and C"),
        ((MAPS, MAPS, torch.zeros(1, 5), torch.zeros(5, 1)), "\\(R, 4\\) and \\(4, R\\)"),
        ((MAPS, MAPS, torch.zeros(1, 4), torch.zeros(4, 2)), "\\(R, 4\\) and \\(4, R\\)"),
        ((MAPS, MAPS.double(), torch.zeros(1, 4), torch.zeros(4, 1)), "one floating-point dtype"),
    ],
)
def test_cross_attention_refuses(arguments: tuple[Tensor, Tensor, Tensor, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cross_attention(*arguments)
