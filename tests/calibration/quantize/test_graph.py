"""INT8: the ranges, the quantised graph in real engines, and the linter that guards it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from calibration.quantize.config import QuantizationConfig
from calibration.quantize.graph import Ranges, int8_graph, measure_ranges, quantize
from calibration.quantize.lint import lint_quantized
from calibration.quantize.ranges import Histogram, Method
from calibration.quantize.rules import prepare
from export.onnx import onnx_from_module
from runtime.common.arrays import Array
from runtime.errors import ExportError
from runtime.parity.compare import compare_rows

from bundles import needs_openvino
from tiny_models import GRAPH, feeds_of, pictures, reference_of, tiny_net

# What its fixtures build, one worker builds.
pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("quantize")]

# Symmetric int8 keeps seven bits of an activation; a fault of bias, scale or layout costs far more than this.
INT8_COSINE = 0.99


@pytest.fixture(scope="module")
def model() -> ModelProto:
    return onnx_from_module(tiny_net(), GRAPH)


@pytest.fixture(scope="module")
def quantized(model: ModelProto) -> ModelProto:
    return quantize(model, feeds_of(pictures(48)))


def broken(quantized: ModelProto, change: Callable[[ModelProto], None]) -> ModelProto:
    copy = ModelProto.FromString(quantized.SerializeToString())
    change(copy)
    return copy


def first_of(model: ModelProto, op_type: str) -> NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def replace_constant(model: ModelProto, name: str, value: Array) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))


# --- the graph


def test_onnx_runtime_computes_nearly_the_same(quantized: ModelProto) -> None:
    reference = reference_of(tiny_net(), pictures(16, seed=9))
    session = onnxruntime.InferenceSession(quantized.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": reference["embed/image"]})
    _, cosines = compare_rows(reference["embed/embedding"], found)
    assert cosines.min() >= INT8_COSINE


@needs_openvino
def test_openvino_computes_nearly_the_same_in_int8(quantized: ModelProto) -> None:
    import openvino

    reference = reference_of(tiny_net(), pictures(16, seed=9))
    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(quantized.SerializeToString(), b""), "CPU", config)
    found = compiled({"image": reference["embed/image"]})[0]
    _, cosines = compare_rows(reference["embed/embedding"], found)
    assert cosines.min() >= INT8_COSINE


def test_weights_are_int8_per_channel_and_biases_float(model: ModelProto, quantized: ModelProto) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made_by = {node.output[0]: node for node in quantized.graph.node}
    float_biases = {node.name: node.input[2] for node in model.graph.node if node.op_type == "Conv"}
    convolutions = [node for node in quantized.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 3
    for node in convolutions:
        weight = made_by[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[weight.input[1]].shape == (constants[weight.input[0]].shape[0],)
        bias = constants[node.input[2]]
        assert bias.any(), "a bias of zero would hide faults"
        original = floats[float_biases[node.name]]
        # Float as before, but for what rounding takes from the mean of a channel.
        assert bias.dtype == np.float32
        assert 0 < np.abs(bias - original).max() < 0.05 * np.abs(original).max()


def test_a_relu_shares_the_scale_of_what_it_reads(quantized: ModelProto) -> None:
    made_by = {node.output[0]: node for node in quantized.graph.node}
    scales = {node.input[0]: node.input[1] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    cutting = [node for node in quantized.graph.node if node.op_type in ("Relu", "Clip")]
    assert len(cutting) == 3
    compared = 0
    for node in cutting:
        source = made_by[node.input[0]]
        if source.op_type == "DequantizeLinear" and node.output[0] in scales:
            assert constants[source.input[1]] == constants[scales[node.output[0]]]
            compared += 1
    assert compared >= 1


def test_the_output_is_not_rounded(quantized: ModelProto) -> None:
    made_by = {node.output[0]: node for node in quantized.graph.node}
    assert made_by["embedding"].op_type == "Gemm"


def test_the_float_model_is_left_alone(model: ModelProto) -> None:
    before = model.SerializeToString()
    quantize(model, feeds_of(pictures(8)))
    assert model.SerializeToString() == before


def test_says_nothing(model: ModelProto, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    quantize(model, feeds_of(pictures(8)), config=QuantizationConfig(method="percentile"))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("method", ["percentile", "entropy", "minmax"])
def test_other_methods(model: ModelProto, method: Method) -> None:
    reference = reference_of(tiny_net(), pictures(16, seed=9))
    made = quantize(model, feeds_of(pictures(48)), config=QuantizationConfig(method=method))
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": reference["embed/image"]})
    assert compare_rows(reference["embed/embedding"], found)[1].min() >= INT8_COSINE


def test_model_local_functions_are_inlined() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18, "edgevis" : 1]>
        g (float[N, 2, 4, 4] image) => (float[N, 2, 4, 4] y)
        <float[2, 2, 1, 1] w = {1.0, -2.0, 0.5, 3.0}, float[2] b = {0.25, -1.0}>
        { y = edgevis.Project(image, w, b) }
        <domain: "edgevis", opset_import: ["" : 18]>
        Project (x, w, b) => (y) { z = Conv(x, w, b)  y = Relu(z) }
    """
    model = onnx.parser.parse_model(text)
    images = np.random.default_rng(0).standard_normal((8, 2, 4, 4)).astype(np.float32)
    made = quantize(model, [{"image": images}])
    assert not made.functions
    assert "QuantizeLinear" in {node.op_type for node in made.graph.node}


def test_means_of_the_channels_are_corrected(model: ModelProto) -> None:
    reference = reference_of(tiny_net(), pictures(48, seed=9))
    prepared = prepare(model, QuantizationConfig().operators)
    ranges = measure_ranges(prepared, feeds_of(pictures(48)), QuantizationConfig())
    errors = []
    for bias_correction in ({}, ranges.bias_correction):
        made = int8_graph(prepared, Ranges(ranges.amax, bias_correction), QuantizationConfig())
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"image": reference["embed/image"]})
        errors.append(np.abs((found - reference["embed/embedding"]).mean(axis=0)).mean())
    assert errors[1] < 0.8 * errors[0]


def test_layers_that_stay_float_are_as_they_were(model: ModelProto) -> None:
    prepared = prepare(model, QuantizationConfig().operators)
    ranges = measure_ranges(prepared, feeds_of(pictures(8)), QuantizationConfig())
    kept = prepared.layers[1].name
    made = int8_graph(prepared, ranges, QuantizationConfig(placement="inputs"), nodes_to_exclude={kept})
    before = {node.name: [value.name for value in node.inputs if value] for node in prepared.model.graph}
    after = {node.name: node for node in made.graph.node}
    assert list(after[kept].input) == before[kept]
    assert all(after[layer.name].input[1].endswith("_rounded") for layer in prepared.layers if layer.name != kept)
    nothing = int8_graph(
        prepared, ranges, QuantizationConfig(), nodes_to_exclude={layer.name for layer in prepared.layers}
    )
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in nothing.graph.node}


def test_a_channel_of_zeros_stays_zero() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18]>
        g (float[N, 1, 4, 4] image) => (float[N, 2, 4, 4] y)
        <float[2, 1, 1, 1] w = {0.0, 2.0}, float[2] b = {0.0, -1.0}>
        { y = Conv(image, w, b) }
    """
    images = np.random.default_rng(0).standard_normal((8, 1, 4, 4)).astype(np.float32)
    made = quantize(onnx.parser.parse_model(text), [{"image": images}])
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": images})
    assert not found[:, 0].any()
    np.testing.assert_allclose(found[:, 1], 2 * images[:, 0] - 1, atol=0.1)


def test_no_images(model: ModelProto) -> None:
    with pytest.raises(ExportError, match="no image to measure ranges on"):
        quantize(model, [])


def test_values_that_are_not_finite_are_named(model: ModelProto) -> None:
    feed = {"image": np.full((2, 3, 32, 16), np.nan, np.float32)}
    with pytest.raises(ExportError, match="tensor 'image' cannot be quantised: the values are not finite"):
        quantize(model, [feed])


# --- the ranges

VALUES = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e6, 1e6, width=32))


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_histogram_keeps_every_value(parts: list[Array]) -> None:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    everything = np.abs(np.concatenate(parts))
    assert histogram.counts.sum() == everything.size
    assert histogram.peak == (0 if everything.max() < 2.4e-35 else everything.max())
    if histogram.peak > 0:
        assert histogram.peak <= histogram.top
        assert histogram.amax("minmax", 0) == histogram.peak
        for method in ("mse", "percentile", "entropy"):
            assert 0 < histogram.amax(method, 99.9) <= histogram.peak


@pytest.mark.parametrize("value", [1e-45, 1.837441e-39, 1e-36])
def test_values_without_a_normal_step_count_as_zeros(value: float) -> None:
    histogram = Histogram()
    histogram.add(np.array([value, 0], np.float32))
    assert histogram.amax("mse", 99.9) == 1.0  # as for zeros alone
    histogram.add(np.array([3, value], np.float32))
    assert histogram.amax("minmax", 0) == 3.0
    assert histogram.counts.sum() == 4


def test_percentile_is_that_of_the_values() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    histogram = Histogram()
    for part in np.array_split(values, 7):
        histogram.add(part)
    # Two bins of at most twice the peak / 2048.
    assert histogram.amax("percentile", 99.0) == pytest.approx(np.percentile(np.abs(values), 99.0), abs=0.02)


def test_mse_cuts_a_lonely_outlier_off() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    values[0] = 40.0

    def error(amax: float) -> float:
        scale = amax / 127
        return float(((values - np.clip(np.round(values / scale), -127, 127) * scale) ** 2).mean())

    histogram = Histogram()
    histogram.add(values)
    amax = histogram.amax("mse", 0)
    assert amax < 0.75 * histogram.peak
    assert error(amax) < 0.8 * error(histogram.peak)


def test_entropy_cuts_a_thin_tail_off_and_keeps_what_is_evenly_used() -> None:
    random = np.random.default_rng(0)
    even, tailed = Histogram(), Histogram()
    even.add(random.uniform(-1, 1, 100_000).astype(np.float32))
    values = random.standard_normal(100_000).astype(np.float32)
    values[:20] *= 10
    tailed.add(values)
    assert even.amax("entropy", 0) > 0.9 * even.peak
    assert np.percentile(np.abs(values), 99) < tailed.amax("entropy", 0) < 0.5 * tailed.peak


def test_entropy_does_not_count_zeros() -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(20_000)).astype(np.float32)
    without, with_zeros = Histogram(), Histogram()
    without.add(values)
    with_zeros.add(np.concatenate([values, np.zeros(80_000, np.float32)]))
    assert with_zeros.amax("entropy", 0) == pytest.approx(without.amax("entropy", 0))


def test_large_arrays_are_counted_in_part_but_their_peak_is_not_missed() -> None:
    values = np.zeros((1, 1, 1000, 1000), np.float32)
    values[0, 0, 3, 7] = -5.0
    histogram = Histogram()
    histogram.add(values)
    assert histogram.peak == 5.0
    assert 100_000 < histogram.counts.sum() < 300_000


def test_a_tensor_that_is_always_zero() -> None:
    histogram = Histogram()
    histogram.add(np.zeros((4, 4), np.float32))
    histogram.add(np.zeros((0, 4), np.float32))
    assert histogram.amax("mse", 0) == 1.0


# --- the linter


def test_linter_accepts_what_quantize_makes(quantized: ModelProto) -> None:
    lint_quantized(quantized)


def test_linter_names_a_zero_point_that_is_not_zero(quantized: ModelProto) -> None:
    node = first_of(quantized, "QuantizeLinear")
    bad = broken(quantized, lambda model: replace_constant(model, node.input[2], np.array(3, np.int8)))
    with pytest.raises(ExportError, match=rf"node '{node.name}' \(QuantizeLinear\): its zero point is \[3\]"):
        lint_quantized(bad)


def test_linter_names_uint8(quantized: ModelProto) -> None:
    node = first_of(quantized, "QuantizeLinear")
    bad = broken(quantized, lambda model: replace_constant(model, node.input[2], np.array(0, np.uint8)))
    with pytest.raises(ExportError, match=rf"node '{node.name}' \(QuantizeLinear\): it works on UINT8"):
        lint_quantized(bad)


def test_linter_knows_that_uint8_is_the_default(quantized: ModelProto) -> None:
    node = first_of(quantized, "QuantizeLinear")

    def change(model: ModelProto) -> None:
        del first_of(model, "QuantizeLinear").input[2]

    with pytest.raises(ExportError, match=rf"node '{node.name}' .* UINT8"):
        lint_quantized(broken(quantized, change))


def test_linter_names_an_int32_bias(quantized: ModelProto) -> None:
    def change(model: ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([5, 6], np.int32), "bias_int32"))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "bias_scale"))
        node = helper.make_node("DequantizeLinear", ["bias_int32", "bias_scale"], ["bias"], name="bias_node")
        model.graph.node.insert(0, node)

    with pytest.raises(ExportError, match=r"'bias_node' \(DequantizeLinear\): it works on INT32; keep biases in float"):
        lint_quantized(broken(quantized, change))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_linter_names_a_scale_out_of_range(quantized: ModelProto, scale: float) -> None:
    node = first_of(quantized, "QuantizeLinear")
    bad = broken(quantized, lambda model: replace_constant(model, node.input[1], np.array(scale, np.float32)))
    with pytest.raises(ExportError, match=rf"node '{node.name}' .* scales are float32 or float16, finite, > 0"):
        lint_quantized(bad)


def test_linter_names_a_scale_that_is_computed(quantized: ModelProto) -> None:
    node = first_of(quantized, "QuantizeLinear")

    def change(model: ModelProto) -> None:
        first_of(model, "QuantizeLinear").input[1] = "image"

    with pytest.raises(ExportError, match=rf"node '{node.name}' .* its scale 'image' is not a constant"):
        lint_quantized(broken(quantized, change))


def test_linter_names_an_operator_that_tensorrt_lacks() -> None:
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"], name="dynamic")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph([node], "g", [x], [helper.make_tensor_value_info("y", TensorProto.UINT8, ["N"])])
    with pytest.raises(ExportError, match=r"'dynamic' .* not among those that TensorRT reads"):
        lint_quantized(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


def test_linter_looks_into_inner_graphs() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 18]>
        g (bool c, float[N] x) => (float[N] y) <float s = {0.5}, uint8 z = {128}> {
            y = If (c) <
                then_branch = t () => (float[N] a) { q = QuantizeLinear(x, s, z)  a = DequantizeLinear(q, s, z) },
                else_branch = e () => (float[N] b) { b = Neg(x) }
            >
        }
    """
    with pytest.raises(ExportError, match=r"the one that makes 'q'.*zero point is \[128\]"):
        lint_quantized(onnx.parser.parse_model(text))
