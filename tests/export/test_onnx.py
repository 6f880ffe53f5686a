"""PyTorch to ONNX: the graph computes the same at every batch size, keeps its promise of names and tells no secrets."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

from export.onnx import IR_VERSION, OPSET, onnx_from_module, strip_metadata, with_own_names
from runtime.bundle.spec import Graph, TensorSpec
from runtime.errors import ExportError
from runtime.images.preprocess import Preprocessor

from locations import ROOT
from model_contract import check_function_names
from tiny_models import EMBEDDING, GRAPH, HEIGHT, IMAGE, PREPROCESS, WIDTH, pictures, tiny_net

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def exported() -> ModelProto:
    return onnx_from_module(tiny_net(), GRAPH)


def session_of(model: ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_same_result_at_every_batch_size(exported: ModelProto, batch: int) -> None:
    images = Preprocessor(PREPROCESS)(pictures(batch).images)
    with torch.no_grad():
        expected = tiny_net().embed(torch.from_numpy(images)).numpy()
    (found,) = session_of(exported).run(None, {"image": images})
    # Float32 on both sides, summed in another order and with the batch norms folded.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_inputs_and_outputs_are_the_declared_ones(exported: ModelProto) -> None:
    assert [value.name for value in exported.graph.input] == ["image"]
    assert [value.name for value in exported.graph.output] == ["embedding"]
    shape = exported.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["N", 3, HEIGHT, WIDTH]


def test_batch_norms_are_folded(exported: ModelProto) -> None:
    operators = {node.op_type for node in exported.graph.node}
    assert "Conv" in operators
    assert "BatchNormalization" not in operators


def test_versions_that_all_engines_read(exported: ModelProto) -> None:
    assert [(item.domain, item.version) for item in exported.opset_import] == [("", OPSET)]
    assert exported.ir_version <= IR_VERSION


def test_nothing_tells_of_the_machine(exported: ModelProto) -> None:
    data = exported.SerializeToString()
    for secret in (
        str(ROOT),
        str(Path(torch.__file__).parent),
        "stack_trace",
        "TinyNet",
        ".py",
    ):
        assert secret.encode() not in data
    assert not exported.metadata_props
    assert not exported.graph.value_info
    assert not any(node.doc_string or node.metadata_props for node in exported.graph.node)


def test_two_exports_are_equal_bytes(exported: ModelProto) -> None:
    again = onnx_from_module(tiny_net(), GRAPH)
    assert again.SerializeToString(deterministic=True) == exported.SerializeToString(deterministic=True)


def test_says_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("torch.onnx._internal.exporter._registration").level
    onnx_from_module(tiny_net(), GRAPH)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.getLogger("torch.onnx._internal.exporter._registration").level == level


def test_exported_in_evaluation_mode() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def embed(self, image: Tensor) -> Tensor:
            return self.drop(image).mean((2, 3))

    graph = Graph("embed", (IMAGE,), (TensorSpec("embedding", "float32", ("N", 3)),))
    module = Dropping().train()
    model = onnx_from_module(module, graph)
    ones = np.ones((3, 3, HEIGHT, WIDTH), np.float32)
    np.testing.assert_allclose(session_of(model).run(None, {"image": ones})[0], 1.0)


def test_several_inputs_outputs_and_open_axes() -> None:
    class Prototypes(nn.Module):
        def compare(self, features: Tensor, prototypes: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
            scores = features @ prototypes.T
            return scores, scores.masked_fill(~known, -1.0).argmax(dim=1)

    graph = Graph(
        "compare",
        (
            TensorSpec("features", "float32", ("N", 4)),
            TensorSpec("prototypes", "float32", ("K", 4)),
            TensorSpec("known", "bool", ("K",)),
        ),
        (TensorSpec("scores", "float32", ("N", "K")), TensorSpec("best", "int64", ("N",))),
    )
    session = session_of(onnx_from_module(Prototypes(), graph))
    random = np.random.default_rng(0)
    features = random.random((5, 4), np.float32)
    prototypes = random.random((3, 4), np.float32)
    known = np.array([True, False, True])
    scores, best = session.run(None, {"features": features, "prototypes": prototypes, "known": known})
    np.testing.assert_allclose(scores, features @ prototypes.T, rtol=1e-5)
    assert (best == np.where(known, features @ prototypes.T, -1).argmax(axis=1)).all()


def test_method_that_is_missing() -> None:
    with pytest.raises(ExportError, match="TinyNet has no method 'segment'"):
        onnx_from_module(tiny_net(), Graph("segment", (IMAGE,), (EMBEDDING,)))


def test_output_other_than_declared() -> None:
    graph = Graph("embed", (IMAGE,), (TensorSpec("embedding", "float32", ("N", 99)),))
    with pytest.raises(ExportError, match=r"outputs are embedding float32 \(N, 24\); .*\(N, 99\)"):
        onnx_from_module(tiny_net(), graph)


def test_batch_size_baked_in() -> None:
    class TwoOnly(nn.Module):
        def embed(self, image: Tensor) -> Tensor:
            return image.reshape(2, -1)[:, :24]

    with pytest.raises(ExportError, match="graph 'embed'"):
        onnx_from_module(TwoOnly(), GRAPH)


def test_code_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def embed(self, image: Tensor) -> Tensor:
            return image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))

    with pytest.raises(ExportError, match="graph 'embed' cannot be exported to ONNX: ") as caught:
        onnx_from_module(Branching(), GRAPH)
    assert caught.value.__cause__ is not None


def test_strip_metadata_reaches_inner_graphs_and_functions() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18, "edgevis" : 1]>
        g (bool c, float[N] x) => (float[N] y) {
            y = If (c) <
                then_branch = t () => (float[N] a) { a = Neg(x) },
                else_branch = e () => (float[N] b) { b = edgevis.Twice(x) }
            >
        }
        <domain: "edgevis", opset_import: ["" : 18]>
        Twice (x) => (y) { y = Add(x, x) }
    """
    model = onnx.parser.parse_model(text)
    branch = model.graph.node[0].attribute[0].g
    for item in (model, model.graph, model.graph.node[0], branch, branch.node[0], model.functions[0]):
        item.doc_string = "/home/somebody"
        entry = item.metadata_props.add()
        entry.key, entry.value = "trace", "/home/somebody/model.py"
    model.functions[0].node[0].doc_string = "/home/somebody"
    strip_metadata(model)
    assert b"/home/somebody" not in model.SerializeToString()
    onnx.checker.check_model(model)


def test_tensors_of_functions_have_names_of_their_own() -> None:
    """Also those of graphs inside them, and what a graph names in the same way stays another tensor."""
    text = """
        <ir_version: 10, opset_import: ["" : 18, "edgevis" : 1]>
        g (float[N] mask, float[N] x) => (float[N] y)
        {
            twice = Add (x, x)
            y = edgevis.Guarded (twice)
        }
        <opset_import: ["" : 18], domain: "edgevis">
        Guarded (mask) => (result)
        {
            zero = Constant <value_float: float = 0.0> ()
            capped = Clip (mask, , zero)
            sum = ReduceSum <keepdims: int = 0> (capped)
            positive = Greater (sum, zero)
            result = If (positive) <
                then_branch = a () => (float[N] same) { same = Identity (mask) },
                else_branch = b () => (float[N] minus) { minus = Neg (mask) }
            >
        }
    """
    model = onnx.parser.parse_model(text)
    own = ModelProto()
    own.CopyFrom(model)
    own.functions[0].CopyFrom(with_own_names(model.functions[0]))
    (function,) = own.functions
    assert (list(function.input), list(function.output)) == (["_Guarded_mask"], ["_Guarded_result"])
    assert list(function.node[1].input) == ["_Guarded_mask", "", "_Guarded_zero"]
    check_function_names(own)
    feed = {"mask": np.zeros(2, np.float32), "x": np.array([-1, -2], np.float32)}
    for made in (model, own):
        onnx.checker.check_model(made)
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_array_equal(session.run(None, feed)[0], [2, 4])
