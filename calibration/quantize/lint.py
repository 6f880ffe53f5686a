"""The linter of quantised graphs: ONNX Runtime, OpenVINO and TensorRT must all read them in the same way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

from runtime.common.arrays import Array
from runtime.errors import ExportError

# These hold uint8 or a zero point of their own, and TensorRT has none of them.
_FORBIDDEN = ("DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def lint_quantized(model: ModelProto | ir.Model) -> None:
    """Raise for forms that only some engines accept: uint8, a non-zero zero point, an INT32 bias behind Q/DQ.

    TensorRT's parser fails on a DequantizeLinear of INT32, and reads uint8 with zero point 0 as int8 without
    rescaling: cosine 0.9999 becomes 0.975 and no error is raised. A cast of what float16 scales gave to float32 makes
    its compiler look for a node that it does not have on Orin (10.16, github.com/NVIDIA/TensorRT/issues/4832).

    Raises:
        ExportError: A node breaks a rule; the message names the node and what to change.
    """
    for node in _nodes(model if isinstance(model, ir.Model) else ir.from_proto(model)):
        if node.op_type in _FORBIDDEN:
            raise _error(
                node, "its operator is not among those that TensorRT reads", "use QuantizeLinear and DequantizeLinear"
            )
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            _check_scale(node)
            _check_zero_point(node)
            _check_type(node)
            _check_scale_type(node)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes: those of the graph, of its functions, and of the graphs inside them."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _constant(value: ir.Value | None) -> Array | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _check_scale(node: ir.Node) -> None:
    scale = _constant(_input(node, 1))
    if scale is None:
        raise _error(node, f"its scale {_name(_input(node, 1))!r} is not a constant", "store it as an initialiser")
    if scale.dtype not in (np.float32, np.float16) or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise _error(
            node, f"its scale is {scale.dtype}, smallest {scale.min()}", "scales are float32 or float16, finite, > 0"
        )


def _check_zero_point(node: ir.Node) -> None:
    value = _input(node, 2)
    if value is None:
        return
    zero_point = _constant(value)
    if zero_point is None:
        raise _error(node, f"its zero point {value.name!r} is not a constant", "store it as an initialiser")
    if zero_point.any():
        raise _error(
            node, f"its zero point is {zero_point.ravel()[:4].tolist()}", "quantise symmetrically: zero point 0"
        )


def _check_type(node: ir.Node) -> None:
    dtype = _quantized_type(node) if node.op_type == "QuantizeLinear" else _integer_type(node)
    if dtype != ir.DataType.INT8:
        cure = "keep biases in float" if dtype == ir.DataType.INT32 else "quantise to int8"
        raise _error(node, f"it works on {dtype.name}", cure)


def _check_scale_type(node: ir.Node) -> None:
    """A scale is of the type of what it scales; nothing is cast between the two."""
    scale = _constant(_input(node, 1))
    if scale is None:
        return
    if node.op_type == "DequantizeLinear":
        neighbours = [reader for reader, _ in node.outputs[0].uses() if reader.op_type == "Cast"]
        wider = [other for other in neighbours if other.attributes["to"].as_int() == ir.DataType.FLOAT]
    else:
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        wider = [] if producer is None or producer.op_type != "Cast" else [producer]
    if wider and scale.dtype == np.float16:
        raise _error(node, f"float16 scales beside a cast, {wider[0].name!r}", "scale in the type that is read")


def _quantized_type(node: ir.Node) -> ir.DataType:
    """The element type of a QuantizeLinear's result."""
    zero_point = _input(node, 2)
    tensor = None if zero_point is None else ir.convenience.get_const_tensor(zero_point)
    if tensor is not None:
        return tensor.dtype
    declared = node.attributes.get_int("output_dtype", 0)
    return ir.DataType(declared) if declared else ir.DataType.UINT8  # ONNX's default


def _integer_type(node: ir.Node) -> ir.DataType:
    """The element type that a DequantizeLinear reads."""
    value = _input(node, 0)
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor.dtype
    producer = None if value is None else value.producer()
    return _quantized_type(producer) if producer and producer.op_type == "QuantizeLinear" else ir.DataType.UNDEFINED


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _error(node: ir.Node, problem: str, cure: str) -> ExportError:
    name = node.name or f"the one that makes {node.outputs[0].name!r}"
    return ExportError(f"quantised graph: node {name!r} ({node.op_type}): {problem}; {cure}")
