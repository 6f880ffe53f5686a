"""Which nodes stay float by rule, and what INT8 then does to the decisions that hang on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from calibration.data.samples import samples_from_photographs
from calibration.quantize.config import QuantizationConfig
from calibration.quantize.graph import int8_graph, measure_ranges
from calibration.quantize.rules import Prepared, prepare
from calibration.quantize.sessions import open_session, proto_from_ir
from edgevis import models
from edgevis.ops.cross_attention import onnx_function
from export.onnx import onnx_from_module
from export.reference import calibration_feeds
from export.reference_models.torch_module import TorchModel
from runtime.common.arrays import Array

pytestmark = pytest.mark.torch

OPERATORS = QuantizationConfig().operators


def decisions_of(model: ModelProto, feed: dict[str, Array]) -> list[Array]:
    """What each comparison in the graph decides."""
    probe = ModelProto.FromString(model.SerializeToString())
    names = [node.output[0] for node in probe.graph.node if node.op_type == "Greater"]
    assert names, "the graph compares nothing"
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.BOOL, None) for name in names)
    made: list[Array] = open_session(probe).run(names, feed)
    return made


def flipped(wanted: list[Array], found: list[Array]) -> float:
    """The largest share of places of one comparison that are decided otherwise."""
    return max(float((one != other).mean()) for one, other in zip(wanted, found, strict=True))


def test_int8_flips_no_mask_decision_of_real_images() -> None:
    entry = models.entry("hsnet-hm")
    module = models.module_from(entry, {"width": 4, "side": 129})
    deployment = models.deployment_of(entry, module)
    graph = deployment.graph("support")
    samples = samples_from_photographs(height=129, width=129, count=16).with_masks()
    feeds = list(calibration_feeds(TorchModel(module), deployment, graph, samples, batch=4))
    prepared = prepare(onnx_from_module(module, graph), OPERATORS)
    assert set(prepared.excluded_by_rule.values()) == {"a mask's comparison depends on it"}
    ranges = measure_ranges(prepared, feeds[:3], QuantizationConfig())
    wanted = decisions_of(proto_from_ir(prepared.model), feeds[3])
    assert 0.05 < np.mean([decision.mean() for decision in wanted]) < 0.95
    assert flipped(wanted, decisions_of(int8_graph(prepared, ranges, QuantizationConfig()), feeds[3])) <= 0.001

    # The rule is what keeps them: with the backbone in INT8, many more flip.
    without = without_rules(prepared)
    ranges = measure_ranges(without, feeds[:3], QuantizationConfig())
    assert flipped(wanted, decisions_of(int8_graph(without, ranges, QuantizationConfig()), feeds[3])) > 0.001


def without_rules(prepared: Prepared) -> Prepared:
    """The same graph with the layers that it has while its comparisons are hidden from the rules."""
    hidden = proto_from_ir(prepared.model)
    for node in hidden.graph.node:
        if node.op_type == "Greater":
            node.op_type = "Less"
    layers = prepare(hidden, OPERATORS)
    return replace(layers, model=prepared.model)


def test_the_gate_of_cross_attention_stays_float() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18, "edgevis" : 1]>
        g (float[N, 4, 8, 8] image) => (float[N, 4, 8, 8] y)
        <float[4, 4, 1, 1] w, float[2, 4] reduce, float[4, 2] expand>
        { x = Conv(image, w)  y = edgevis.CrossAttention(image, x, reduce, expand) }
    """
    model = onnx.parser.parse_model(text)
    fill(model)
    model.functions.append(onnx_function())
    prepared = prepare(model, OPERATORS)
    assert [layer.operator for layer in prepared.layers] == ["Conv"]
    assert list(prepared.excluded_by_rule.values()) == ["gate of cross-attention"] * 2
    images = np.random.default_rng(1).standard_normal((8, 4, 8, 8)).astype(np.float32)
    made = int8_graph(
        prepared, measure_ranges(prepared, [{"image": images}], QuantizationConfig()), QuantizationConfig()
    )
    for node in made.graph.node:
        if node.op_type in ("Gemm", "Sigmoid"):
            assert not any("rounded" in name for name in node.input)


def test_matrix_products_beside_a_softmax_stay_float() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[N, 6, 8] image) => (float[N, 6, 8] y)
        <float[8, 8] w, float half = {0.5}>
        {
            q = MatMul(image, w)
            k = Transpose <perm: ints = [0, 2, 1]> (image)
            scores = MatMul(q, k)
            scaled = Mul(scores, half)
            weights = Softmax <axis: int = -1> (scaled)
            mixed = MatMul(weights, image)
            y = MatMul(mixed, w)
        }
    """
    model = onnx.parser.parse_model(text)
    fill(model)
    prepared = prepare(model, OPERATORS)
    assert [layer.name for layer in prepared.layers] == ["MatMul_q", "MatMul_y"]
    assert prepared.excluded_by_rule == {"MatMul_scores": "beside a softmax", "MatMul_mixed": "beside a softmax"}
    assert [layer.macs for layer in prepared.layers] == [6 * 8 * 8] * 2


def test_products_of_a_soft_maximum_and_with_one_vector_stay_float() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[N, 6, 8] image, float[N, 8, 6] places) => (float[N, 6] soft, float[N, 1, 6] y, float[N, 6, 6] z)
        <float[8, 8] w, float temperature = {0.1}, int64[1] last = {2}>
        {
            q = MatMul(image, w)
            similar = MatMul(q, places)
            logits = Div(similar, temperature)
            most = ReduceMax <keepdims: int = 1> (logits, last)
            less = Sub(logits, most)
            grown = Exp(less)
            soft = ReduceSum <keepdims: int = 0> (grown, last)
            mean = ReduceMean <keepdims: int = 1> (places, last)
            one = Transpose <perm: ints = [0, 2, 1]> (mean)
            y = MatMul(one, places)
            z = MatMul(image, places)
        }
    """
    model = onnx.parser.parse_model(text)
    fill(model)
    prepared = prepare(model, OPERATORS)
    assert [layer.name for layer in prepared.layers] == ["MatMul_q", "MatMul_z"]
    assert prepared.excluded_by_rule == {
        "MatMul_similar": "beside a softmax",
        "MatMul_y": "a product with one vector",
    }


def test_squeeze_and_excitation_stays_float() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[N, 4, 8, 8] image) => (float[N, 4, 8, 8] y)
        <float[4, 4, 1, 1] w, float[2, 4, 1, 1] squeeze, float[4, 2, 1, 1] excite>
        {
            x = Conv(image, w)
            mean = GlobalAveragePool(x)
            a = Conv(mean, squeeze)
            b = Conv(a, excite)
            gate = Sigmoid(b)
            y = Mul(x, gate)
        }
    """
    model = onnx.parser.parse_model(text)
    fill(model)
    prepared = prepare(model, OPERATORS)
    assert [layer.name for layer in prepared.layers] == ["Conv_x"]
    assert [layer.macs for layer in prepared.layers] == [4 * 4 * 64]
    assert set(prepared.excluded_by_rule.values()) == {"works on a single place"}


def test_results_that_float32_outputs_follow_from_are_not_rounded() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[N, 4, 8, 8] image) => (float[N, 4, 8, 8] boxes, float[N, 4, 8, 8] maps)
        <float[4, 4, 1, 1] w, float[4, 4, 1, 1] v, float[4, 4, 1, 1] u>
        {
            x = Conv(image, w)
            raw = Conv(x, v)
            maps = Conv(x, u)
            grown = Exp(raw)
            boxes = Add(grown, x)
        }
    """
    model = onnx.parser.parse_model(text)
    fill(model)
    feeds = [{"image": np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)}]
    rounded = {}
    for declared in ((), ("boxes",)):
        prepared = prepare(model, OPERATORS, declared)
        assert {layer.name for layer in prepared.layers if "last" in layer.kinds} == (
            {"Conv_raw", "Conv_x"} if declared else set()
        )
        config = QuantizationConfig()
        made = int8_graph(prepared, measure_ranges(prepared, feeds, config), config)
        rounded[declared] = {node.input[0] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    assert rounded[()] == {"image", "x", "raw"}
    # Other layers read x, so that it is rounded for these.
    assert rounded["boxes",] == {"image", "x"}


def fill(model: ModelProto) -> None:
    """Give the weights random values: the parser takes those without any for intermediate results."""
    random = np.random.default_rng(0)
    for value in model.graph.value_info:
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.value_info[:]
