"""Float16 by explicit casts: what stays float32 and why, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper, parser, shape_inference

from calibration.quantize.graph import quantize
from calibration.quantize.lint import lint_quantized
from edgevis.ops.cross_attention import onnx_function
from export.autocast import fp16_from_fp32
from export.cpu_proxy import CpuProxy
from export.onnx import onnx_from_module
from runtime.common.arrays import Array
from runtime.errors import ExportError
from runtime.parity.compare import compare_rows

from tiny_models import GRAPH, feeds_of, pictures, tiny_net

RANDOM = np.random.default_rng(5)


def model_of(body: str, **weights: Array) -> ModelProto:
    """A graph x (N, 8, 6, 6) -> y; each weight is an initialiser."""
    text = (
        '<ir_version: 10, opset_import: ["" : 18, "edgevis" : 1]> '
        f"g (float[N, 8, 6, 6] x) => (float[N, a, b, c] y) {{ {body} }}"
    )
    model: ModelProto = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def images(scale: float = 1.0, rows: int = 2) -> dict[str, Array]:
    return {"x": (RANDOM.standard_normal((rows, 8, 6, 6)) * scale).astype(np.float32)}


def weight(*shape: int, scale: float = 0.1) -> Array:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def types_of(model: ModelProto) -> dict[str, int]:
    """Tensor name to element type."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}


def node(model: ModelProto, kind: str) -> NodeProto:
    (found,) = [item for item in model.graph.node if item.op_type == kind]
    return found


def in_half(model: ModelProto, kind: str) -> bool:
    """Whether the only node of that operator makes float16, by the name of its output or of the cast that follows."""
    return types_of(model)[node(model, kind).output[0]] == TensorProto.FLOAT16


def outputs(model: ModelProto, feed: Mapping[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, dict(feed))[0]
    return result


CONV = "h = Conv <kernel_shape: ints = [1, 1]> (x, w) "


def test_inputs_and_outputs_stay_float32_and_the_middle_becomes_float16() -> None:
    model = model_of(CONV + "r = Relu (h) y = Conv <kernel_shape: ints = [1, 1]> (r, w)", w=weight(8, 8, 1, 1))
    feed = images()
    half = fp16_from_fp32(model, [feed])
    assert [item.op_type for item in half.graph.node] == ["Cast", "Conv", "Relu", "Conv", "Cast"]
    assert {item.data_type for item in half.graph.initializer} == {TensorProto.FLOAT16}
    for given, made in ((model.graph.input, half.graph.input), (model.graph.output, half.graph.output)):
        assert [value.name for value in given] == [value.name for value in made]
        assert {value.type.tensor_type.elem_type for value in made} == {TensorProto.FLOAT}
    error, cosines = compare_rows(outputs(model, feed), outputs(half, feed))
    assert 1e-5 < error < 2e-3, "float16 it is, and no worse"
    assert cosines.min() > 0.99999


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("y = Softmax (h)", "Softmax"),
        ("y = ReduceMean (h, axes)", "ReduceMean"),
        ("y = Exp (h)", "Exp"),
        ("y = LayerNormalization <axis: int = 3> (h, six)", "LayerNormalization"),
        ("y = AveragePool <kernel_shape: ints = [1, 65], pads: ints = [0, 32, 0, 32]> (h)", "AveragePool"),
        ("m = ReduceMean (h, axes) y = Sub (h, m)", "Sub"),
        ("p = ReduceMean (h, axes) s = Sigmoid (p) y = Mul (s, h)", "Sigmoid"),
        ("k = Mul (h, x) d = Greater (k, zero) y = Where (d, h, x)", "Mul"),
    ],
)
def test_what_needs_float32_keeps_it(body: str, kind: str) -> None:
    model = model_of(
        CONV + body,
        w=weight(8, 8, 1, 1),
        axes=np.array([2, 3], np.int64),
        six=np.ones(6, np.float32),
        zero=np.array(0, np.float32),
    )
    half = fp16_from_fp32(model, [images()])
    assert in_half(half, "Conv")
    assert not in_half(half, kind)


def test_outputs_declared_as_float32_are_so_from_the_last_convolution_on() -> None:
    """A decoder's product and sum: float16 where nothing is declared, and the convolution before it in either case."""
    body = CONV + "m = Mul (h, eight) y = Add (m, place)"
    model = model_of(body, w=weight(8, 8, 1, 1), eight=np.full(1, 8, np.float32), place=weight(1, 1, 6, 6, scale=100))
    plain = fp16_from_fp32(model, [images()])
    assert all(in_half(plain, kind) for kind in ("Conv", "Mul", "Add"))
    declared = fp16_from_fp32(model, [images()], float32_outputs=("y",))
    assert [in_half(declared, kind) for kind in ("Conv", "Mul", "Add")] == [True, False, False]
    assert [item.op_type for item in declared.graph.node] == ["Cast", "Conv", "Cast", "Mul", "Add"]
    feed = images()
    exact = outputs(model, feed)
    errors = [np.abs(outputs(half, feed) - exact).max() for half in (plain, declared)]
    assert errors[1] < errors[0] / 4


def test_a_small_average_is_float16() -> None:
    model = model_of(CONV + "y = AveragePool <kernel_shape: ints = [2, 2]> (h)", w=weight(8, 8, 1, 1))
    half = fp16_from_fp32(model, [images()])
    assert node(half, "AveragePool").output[0] != "y", "the cast makes the output"
    assert in_half(half, "AveragePool")


def test_edgevis_operators_stay_float32_as_they_are_defined() -> None:
    body = CONV + "g = edgevis.CrossAttention (h, x, reduce, expand) y = Conv <kernel_shape: ints = [1, 1]> (g, w)"
    model = model_of(body, w=weight(8, 8, 1, 1), reduce=weight(2, 8), expand=weight(8, 2))
    model.functions.append(onnx_function())
    feed = images()
    half = fp16_from_fp32(model, [feed])
    kinds = [item.op_type for item in half.graph.node]
    assert kinds == ["Cast", "Conv", "Cast", "CrossAttention", "Cast", "Conv", "Cast"]
    assert compare_rows(outputs(model, feed), outputs(half, feed))[0] < 2e-3


@pytest.mark.parametrize("scale", [7e4, 1e-9], ids=["overflow", "underflow"])
def test_weights_beyond_float16_keep_their_node(scale: float) -> None:
    model = model_of(CONV + "y = Conv <kernel_shape: ints = [1, 1]> (h, v)", w=weight(8, 8, 1, 1), v=weight(8, 8, 1, 1))
    for tensor in model.graph.initializer:
        if tensor.name == "v":
            values = np.full((8, 8, 1, 1), scale, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, "v"))
    half = fp16_from_fp32(model, [images(1e-2)])
    first, second = (item for item in half.graph.node if item.op_type == "Conv")
    assert types_of(half)[first.output[0]] == TensorProto.FLOAT16
    assert second.input[1] == "v", "the weights are the float32 ones"


@pytest.mark.parametrize("scale", [1e5, 1e-7], ids=["too large", "too small"])
def test_values_beyond_float16_keep_their_node(scale: float) -> None:
    """The graph and its weights are the same: what real images make of them decides."""
    model = model_of(CONV + "r = Relu (h) y = Softmax (r)", w=weight(8, 8, 1, 1))
    assert in_half(fp16_from_fp32(model, [images()]), "Conv")
    half = fp16_from_fp32(model, [images(), images(scale)] if scale > 1 else [images(scale)])
    assert not in_half(half, "Conv")
    assert not [item for item in half.graph.node if item.op_type == "Cast"]


def test_a_tensor_that_two_types_read_is_cast_once() -> None:
    body = CONV + "a = Exp (h) b = Exp (h) c = Add (a, b) y = Relu (c)"
    half = fp16_from_fp32(model_of(body, w=weight(8, 8, 1, 1)), [images(0.1)])
    casts = [item for item in half.graph.node if item.op_type == "Cast" and item.input[0] == "h"]
    assert len(casts) == 1


def test_an_output_that_is_read_again_has_its_name() -> None:
    model = model_of(CONV + "y = Relu (h) z = Conv <kernel_shape: ints = [1, 1]> (y, w)", w=weight(8, 8, 1, 1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, ("N", 8, 6, 6)))
    half = fp16_from_fp32(model, [images()])
    assert [value.name for value in half.graph.output] == ["y", "z"]
    assert [item.op_type for item in half.graph.node].count("Cast") == 3


def test_the_given_model_is_not_changed() -> None:
    model = model_of(CONV + "y = Relu (h)", w=weight(8, 8, 1, 1))
    before = model.SerializeToString()
    fp16_from_fp32(model, [images()])
    assert model.SerializeToString() == before


def test_no_images_and_values_that_are_not_finite() -> None:
    model = model_of(CONV + "y = Relu (h)", w=weight(8, 8, 1, 1))
    with pytest.raises(ExportError, match="there is no image"):
        fp16_from_fp32(model, [])
    broken = images()
    broken["x"][0, 0, 0, 0] = np.nan
    with pytest.raises(ExportError, match="values that are not finite"):
        fp16_from_fp32(model, [broken])


@pytest.mark.torch
def test_a_quantised_graph_keeps_its_integers(tmp_path: Path) -> None:
    """Q/DQ stay, their scales become float16 with what they scale, and the result is that of the float32 scales."""
    net = tiny_net()
    feeds = feeds_of(pictures(24))
    quantized = quantize(onnx_from_module(net, GRAPH), feeds)
    half = fp16_from_fp32(quantized, feeds[:2])
    lint_quantized(half)
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        counts = [[item.op_type for item in model.graph.node].count(kind) for model in (quantized, half)]
        assert counts[0] == counts[1] > 0
    scales = {item.input[1] for item in half.graph.node if item.op_type == "DequantizeLinear"}
    types = {item.name: item.data_type for item in half.graph.initializer}
    assert TensorProto.FLOAT16 in {types[name] for name in scales}
    assert next(item.version for item in half.opset_import if not item.domain) >= 19
    found = []
    for name, model in (("float", quantized), ("half", half)):
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        engine = CpuProxy(path)
        found.append(engine.run(feeds[0])["embedding"])
    assert compare_rows(*found)[1].min() > 0.999


def test_what_two_types_read_is_dequantised_in_both() -> None:
    """A cast behind float16 scales is what TensorRT 10.16 cannot build on Orin."""
    body = (
        "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) "
        "h = Conv <kernel_shape: ints = [1, 1]> (d, w) e = Exp (d) r = Exp (h) y = Add (e, r)"
    )
    scale, zero = np.array(0.03, np.float32), np.array(0, np.int8)
    model = model_of(body, w=weight(8, 8, 1, 1), s=scale, z=zero)
    feed = images()
    half = fp16_from_fp32(model, [feed])
    kinds = {item.input[1]: item for item in half.graph.node if item.op_type == "DequantizeLinear"}
    assert set(kinds) == {"s", "s_half"}
    assert in_half(half, "Conv")
    assert not [
        item for item in half.graph.node if item.op_type == "Cast" and item.input[0] == kinds["s_half"].output[0]
    ]
    lint_quantized(half)
    assert compare_rows(outputs(model, feed), outputs(half, feed))[0] < 2e-3


def test_the_linter_names_a_cast_behind_float16_scales() -> None:
    body = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, t, z) y = Cast <to: int = 1> (d)"
    constants = {"s": np.array(0.03, np.float32), "t": np.array(0.03, np.float16), "z": np.array(0, np.int8)}
    model = model_of(body, **constants)
    with pytest.raises(ExportError, match=r"DequantizeLinear\): float16 scales beside a cast"):
        lint_quantized(model)
